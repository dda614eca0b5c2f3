"""A text that stands as the judge's answer: which tokens it has, and their log-probabilities by a plain forward."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from contracts import check_prompt

from latent_rewards import HFJudge, JudgePrompt, Need, Reading, Request
from latent_rewards.engine.blocks import Blocks, reference_states
from latent_rewards.files.sources import RowError
from latent_rewards.judge.encoding import Encoded
from latent_rewards.judge.overflow import cut_middle

REFERENCE = JudgePrompt.load("likelihood_reference")
COMPLETION = JudgePrompt.load("likelihood_completion")
TARGET = Need(target=True)
ROWS = [
    {"prompt": "What is 17 * 6?", "completion": c, "reference": r, "aspect": a}
    for c, r, a in (
        ("<think>17 * 6 = 102</think>It is 102.", "102", "short"),
        ("<think>17 * 6 = 102</think>It is 102.", " One hundred\nand two.\n", "short"),
        ("It is about a hundred dogs.", "102", ""),
        ("The quick brown fox jumps over the lazy dog. " * 9, "<|im_end|> is 10 </think>", "lazy"),
    )
]


def plain(judge: HFJudge, encoded: Encoded) -> torch.Tensor:
    """Log-probabilities of the target's tokens by one forward for every token, of the text before it."""
    assert encoded.target is not None
    out = []
    for at in range(encoded.target, len(encoded.ids)):
        logits, _ = reference_states(judge.blocks, [encoded.ids[:at]], [[at - 1]])
        out.append(torch.log_softmax(logits[0].double(), -1)[encoded.ids[at]])
    return torch.stack(out)


def check(judge: HFJudge, prompt: JudgePrompt, rows: Any = ROWS, atol: float = 5e-5) -> Reading:
    """Every row's target as a plain forward reads it."""
    (reading,) = judge.read([Request(prompt, rows, TARGET)])
    encoded, _ = judge._encode(prompt, rows)
    assert reading.target_logprobs is not None and reading.target_logprobs.dtype == torch.float32
    assert reading.reasons == (None,) * len(rows) and reading.label_logprobs is None
    for e, row in zip(encoded, reading.target_logprobs, strict=True):
        want = plain(judge, e)
        torch.testing.assert_close(row[: len(want)].double(), want, rtol=0, atol=atol)
        assert bool(row[len(want) :].isnan().all())
    return reading


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "granite", "cohere"])
@pytest.mark.parametrize("prompt", [REFERENCE, COMPLETION], ids=lambda p: p.name)
def test_every_token_as_a_plain_forward_has_it(make_judge: Any, family: str, prompt: JudgePrompt) -> None:
    check(make_judge(family), prompt)


@pytest.mark.parametrize("tokenizer", ["digits", "numbers", "plain", "metaspace"])
@pytest.mark.parametrize("prompt", [REFERENCE, COMPLETION], ids=lambda p: p.name)
def test_its_tokens_are_those_of_the_whole_text(make_judge: Any, tokenizer: str, prompt: JudgePrompt) -> None:
    judge = make_judge("llama", tokenizer)
    dialogues = prompt.render_all(ROWS)
    bare = judge.encoder.encode([d._replace(target=None) for d in dialogues])
    for dialogue, own, found in zip(dialogues, bare, judge.encoder.encode(dialogues), strict=True):
        assert found.problem is None and found.target == len(own.ids) and found.ids[: len(own.ids)] == own.ids
        assert (found.completion, found.head) == (own.completion, own.head)
        target = found.ids[len(own.ids) :]
        assert dialogue.target == dialogue.target.strip() and not set(target) & set(judge.encoder.control)
        assert judge.encoder.tokenizer.decode(target).strip() == dialogue.target
        if "<" not in dialogue.target:
            whole = judge.encoder.tokenizer.decode(own.ids, skip_special_tokens=False) + dialogue.target
            assert judge.encoder._whole([whole])[0][-len(target) :] == target


def test_what_would_melt_into_the_text_before_stands_in_a_line_of_its_own(make_judge: Any) -> None:
    judge = make_judge("llama", "digits")
    prompt = replace(REFERENCE, prefill="The answer is: th")
    (row,) = ({**ROWS[0], "reference": "the quick"},)
    (own,) = judge.encoder.encode([prompt.render(row)._replace(target=None)])
    (found,) = judge.encoder.encode([prompt.render(row)])
    text = judge.encoder.tokenizer.decode(own.ids) + "the quick"
    assert judge.encoder._whole([text])[0][: len(own.ids)] != own.ids, "else this test shows nothing"
    assert found.ids[: len(own.ids)] == own.ids
    assert found.ids[len(own.ids) :] == judge.encoder._whole(["\nthe quick"])[0][1:]
    check(judge, prompt, [row])


def test_shared_texts_run_once(make_judge: Any) -> None:
    long = "so it goes on and on and " * 20
    rows = [
        {"prompt": long, "completion": long + "a" * i, "reference": f"answer {j} of dogs"}
        for i in (1, 2)
        for j in range(6)
    ]
    judge = make_judge("llama")
    (reading,) = judge.read([Request(REFERENCE, rows, TARGET)])
    shared, other = judge.forward.tokens_run, make_judge("llama", share_prefixes=False)
    (whole,) = other.read([Request(REFERENCE, rows, TARGET)])
    torch.testing.assert_close(reading.target_logprobs, whole.target_logprobs, rtol=0, atol=5e-5, equal_nan=True)
    alone = len(judge._encode(REFERENCE, rows[:1])[0][0].ids)
    assert shared < 2 * alone < other.forward.tokens_run / 5, "task once, replies once each, references for themselves"


def test_order_and_company_do_not_matter(make_judge: Any) -> None:
    want = check(make_judge("qwen2"), REFERENCE).target_logprobs
    order = [2, 0, 3, 1]
    (mixed,) = make_judge("qwen2").read([Request(REFERENCE, [ROWS[i] for i in order], TARGET)])
    torch.testing.assert_close(mixed.target_logprobs, want[order], rtol=0, atol=5e-5, equal_nan=True)
    judge = make_judge("qwen2", batch_invariant=True)
    (exact,) = judge.read([Request(REFERENCE, ROWS, TARGET)])
    torch.testing.assert_close(exact.target_logprobs, want, rtol=0, atol=5e-5, equal_nan=True)
    for i in order:
        judge.forget()
        (one,) = judge.read([Request(REFERENCE, [ROWS[i]], TARGET)])
        n = one.target_logprobs.shape[1]
        assert torch.equal(one.target_logprobs[0], exact.target_logprobs[i, :n]), "bit for bit"


def test_beyond_a_sliding_window_and_a_switch_of_the_rotary_frequencies(tokenizers: Any, make_model: Any) -> None:
    tok = tokenizers["digits"]
    window = HFJudge(make_model("mistral", tok), tokenizer=tok)  # of 24 tokens
    check(window, COMPLETION, [{"prompt": "Go on. " * 30, "completion": "so it goes on. " * 20}])
    size = len(tok)
    config = transformers.Phi3Config(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, original_max_position_embeddings=420,
        initializer_range=0.25, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [4.0, 3.0, 2.0, 1.5], "original_max_position_embeddings": 420,
        },
    )  # fmt: skip
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    judge = HFJudge(model, tokenizer=tok)
    rows = [{"prompt": "Go on.", "completion": "so it goes on. " * n} for n in (1, 20, 40)]
    encoded, _ = judge._encode(COMPLETION, rows)
    spans = [(e.target, len(e.ids)) for e in encoded]
    assert any(a < 420 < b for a, b in spans), f"the switch lies within a target: {spans}"
    check(judge, COMPLETION, rows)


def test_memory_does_not_grow_with_length_times_vocabulary(make_judge: Any) -> None:
    head = make_judge("llama").blocks.head
    states = torch.randn(1000, 32)
    tokens = [random.Random(0).randrange(len(head.weight)) for _ in range(1000)]
    seen, rows = [], head.rows
    head.rows = lambda *given: seen.append(rows(*given)) or seen[-1]
    got = head.log_probs(states, tokens, chunk=100, at_once=64)
    assert max(x.numel() for x in seen) == 6400 and len(seen) == 16 * -(-len(head.weight) // 100)
    want = torch.log_softmax(rows(states).double(), -1)[torch.arange(1000), tokens]
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    assert head.log_probs(states[:0], []).shape == (0,)


def test_the_own_head_of_a_model_is_read_in_parts_too(make_judge: Any, monkeypatch: Any) -> None:
    judge = make_judge("llama")
    want = check(judge, REFERENCE).target_logprobs
    judge.forget()
    judge.blocks.head.why_own = "a test"
    monkeypatch.setattr("latent_rewards.engine.head._MOST_LOGITS", 3 * judge.blocks.config.vocab_size)
    (got,) = judge.read([Request(REFERENCE, ROWS, TARGET)])
    torch.testing.assert_close(got.target_logprobs, want, rtol=0, atol=2e-5, equal_nan=True)


def test_long_texts_are_cut_in_the_completion_and_never_in_the_target(make_judge: Any) -> None:
    made = Encoded(list(range(20)), (5, 12), 2, target=16)
    cut = cut_middle(made, 3)
    assert cut is not None and cut.ids[cut.target :] == made.ids[16:] and len(cut.ids) == 17
    row = {**ROWS[3], "reference": "10 dogs"}
    n = len(make_judge("llama")._encode(REFERENCE, [row])[0][0].ids)
    check(make_judge("llama", max_length=n - 30, on_overflow="truncate"), REFERENCE, [row])
    short = make_judge("llama", max_length=n - 30)
    (reading,) = short.read([Request(REFERENCE, [row, ROWS[0]], TARGET)])
    assert reading.reasons[0] == f"{n} tokens, but this judge reads at most {n - 30}" and reading.reasons[1] is None
    assert bool(reading.target_logprobs[0].isnan().all()) and not reading.target_logprobs[1, 0].isnan()
    (nothing,) = make_judge("llama", max_length=9).read([Request(REFERENCE, ROWS, TARGET)])
    assert bool(nothing.target_logprobs.isnan().all()) and nothing.target_logprobs.shape[0] == len(ROWS)
    joined = Reading.join([reading, nothing])
    assert len(joined) == 6 and joined.target_logprobs.shape[1] == reading.target_logprobs.shape[1]


def test_empty_and_missing_targets(make_judge: Any) -> None:
    judge = make_judge("llama")
    for value, what in (
        (None, "needs 'reference', which is null in this row"),
        (" \n", "'reference' is empty"),
        (float("nan"), "NaN"),
    ):
        with pytest.raises(RowError, match=what) as err:
            judge.read([Request(REFERENCE, [ROWS[0], {**ROWS[1], "reference": value}], TARGET)])
        assert err.value.row == 1
    rows = [ROWS[0], {**ROWS[0], "completion": "\n"}, {**ROWS[0], "completion": "<think>so"}]
    (reading,) = judge.read([Request(COMPLETION, rows, TARGET)])
    assert (
        reading.reasons[0] is None and "is empty" in reading.reasons[1] and "inside its thought" in reading.reasons[2]
    )
    assert bool(reading.target_logprobs[1:].isnan().all())


def test_a_need_and_a_prompt_that_do_not_fit_are_told(make_judge: Any) -> None:
    judge, weighted = make_judge("llama"), JudgePrompt.load("weighted")
    for act in (judge.check, lambda p, n: judge.read([Request(p, ROWS, n)])):
        with pytest.raises(ValueError, match=r"'weighted' has no target .* use one of kind 'likelihood'"):
            act(weighted, TARGET)
        for need in (Need(labels=True), Need(hidden=frozenset({1})), TARGET | Need(labels=True)):
            with pytest.raises(ValueError, match=r"'likelihood_reference' ends with its target 'reference'"):
                act(REFERENCE, need)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("kind: label\nlabels: {'a': 1, 'b': 0}\ntarget: reference", "kind 'likelihood', and no other, needs 'target'"),
        ("kind: likelihood", "kind 'likelihood', and no other, needs 'target'"),
        ("kind: likelihood\ntarget: completion", "must be a slot that the body does not show"),
        ("kind: likelihood\ntarget: prompt", "must be a slot that the body does not show"),
        ("kind: likelihood\ntarget: reference\noptional: [reference]", "cannot be optional|do not occur"),
        ("kind: likelihood\ntarget: 7", "must be text"),
    ],
)
def test_prompt_files_that_cannot_be(tmp_path: Path, change: str, what: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"body: '{{{{ prompt }}}} {{{{ completion }}}}'\n{change}\n")
    with pytest.raises(ValueError, match=what):
        JudgePrompt.load(path)


def test_the_hash_tells_targets_apart_and_shipped_prompts_keep_the_contract() -> None:
    assert REFERENCE.hash != replace(REFERENCE, target="answer").hash
    for name in ("likelihood_reference", "likelihood_completion"):
        check_prompt(Path(JudgePrompt.load(name).path))


def test_blocks_read_tokens_of_any_states(make_model: Any, tokenizers: Any) -> None:
    blocks = Blocks(make_model("cohere", tokenizers["digits"]))
    ids = [5, 9, 7, 3]
    logits, states = reference_states(blocks, [ids], [[0, 1, 2]])
    want = torch.log_softmax(logits, -1)[torch.arange(3), ids[1:]]
    torch.testing.assert_close(blocks.token_log_probs(states.final, ids[1:]), want, rtol=0, atol=2e-5)
