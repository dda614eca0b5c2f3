from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import FakeJudge, check_judge

from latent_rewards import (
    CrossLayerReward,
    HFJudge,
    Judge,
    JudgePrompt,
    LikertReward,
    Need,
    ProbabilityWeightedReward,
    Request,
    VerifierReward,
)
from latent_rewards.judge import hf as judge_module

WEIGHTED = JudgePrompt.load("weighted")
LABELS = Need(labels=True)
ROWS = [{"prompt": "Name a prime.", "completion": c} for c in ("7", "Nine is prime, I think.", "", "x " * 50)]


def logps(judge: HFJudge, rows: list[dict[str, Any]] = ROWS, **options: Any) -> torch.Tensor:
    out = judge.read([Request(WEIGHTED, rows, LABELS)])[0].label_logprobs
    assert out is not None
    return out


@pytest.mark.parametrize("kind", ["fake", "llama", "qwen3", "folder", "embedded"])
def test_contract(kind: str, make_judge: Any, folder: str, embedded: HFJudge) -> None:
    judges = {"fake": FakeJudge, "folder": lambda: HFJudge(folder), "embedded": lambda: embedded}
    judge = judges[kind]() if kind in judges else make_judge(kind, max_length=400)
    assert isinstance(judge, Judge)
    rows = ROWS[:2] if kind == "embedded" else [*ROWS, {"prompt": "P", "completion": "UNREADABLE " * 400}]
    check_judge(judge, WEIGHTED, rows)


def test_batch_equals_singles_in_any_order(make_judge: Any) -> None:
    judge = make_judge("qwen2")
    together = logps(judge)
    singles = torch.cat([logps(judge, [r]) for r in ROWS])
    torch.testing.assert_close(together, singles, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(logps(judge, ROWS[::-1]).flip(0), together, rtol=1e-5, atol=5e-5)


def test_mass_is_the_sum(make_judge: Any) -> None:
    reading = make_judge().read([Request(WEIGHTED, ROWS, LABELS)])[0]
    torch.testing.assert_close(reading.label_mass, reading.label_logprobs.exp().sum(-1))
    assert len(reading) == 4 and reading.reasons == (None,) * 4


def test_negative_layers_and_lenses(make_judge: Any) -> None:
    judge = make_judge("llama")
    normed = judge.read([Request(WEIGHTED, ROWS, Need(hidden=frozenset({-1, -3, 3, 1})))])[0]
    torch.testing.assert_close(normed.hidden[-1], normed.hidden[3])
    torch.testing.assert_close(normed.hidden[-3], normed.hidden[1])
    raw = judge.read([Request(WEIGHTED, ROWS, Need(hidden=frozenset({1, 3}), hidden_lens="raw"))])[0]
    for layer in (1, 3):
        assert not torch.allclose(raw.hidden[layer], normed.hidden[layer])
        with torch.no_grad():
            torch.testing.assert_close(judge.blocks.norm(raw.hidden[layer]), normed.hidden[layer], rtol=1e-5, atol=5e-5)
    for layer in (0, 4, -4):
        with pytest.raises(ValueError, match=r"layers 1\.\.3; layer"):
            judge.read([Request(WEIGHTED, ROWS[:1], Need(hidden=frozenset({layer})))])[0]


def test_needs_combine() -> None:
    a, b = Need(labels=True, hidden=frozenset({1})), Need(layer_logits=frozenset({"raw"}))
    assert (a | b).covers(a) and (a | b).covers(b) and not a.covers(b)
    raw = Need(hidden=frozenset({1}), hidden_lens="raw")
    assert not raw.covers(a) and not a.covers(raw) and Need().covers(Need())
    with pytest.raises(ValueError, match="one lens"):
        _ = a | raw


def test_frozen_and_feeding_autograd(folder: str) -> None:
    judge = HFJudge(folder)
    model = judge.blocks.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    hidden = judge.read([Request(WEIGHTED, ROWS, Need(hidden=frozenset({2})))])[0].hidden[2]
    assert not hidden.is_inference() and not hidden.requires_grad
    head = torch.nn.Linear(32, 1)
    head(hidden).sum().backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0


def test_two_rewards_make_one_forward(make_judge: Any) -> None:
    judge = make_judge()
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge), CrossLayerReward(judge, lens="raw")]
    prompts, completions = ["a", "a", "b"], ["one", "two", "three"]
    for reward in rewards:
        reward(completions, prompts, trainer_state=None)
    judge.forwards = judge.rows_read = 0
    out = [np.array(r(prompts, completions, trainer_state=None), dtype=float) for r in rewards]
    assert judge.forwards == 1 and judge.rows_read == 3, "the first reads what the others will be asked for"
    alone = [type(r)(make_judge(), **({"lens": r.lens} if isinstance(r, CrossLayerReward) else {})) for r in rewards]
    for mine, other in zip(out, alone, strict=True):
        np.testing.assert_allclose(mine, other.score(prompts, completions), rtol=1e-6)
    rewards[0].score(prompts, [*completions[:2], "new"])
    assert judge.forwards == 2
    VerifierReward(judge).score(prompts, completions)
    assert judge.forwards == 3, "another prompt is another forward"


def test_several_prompts_share_one_forward(make_judge: Any) -> None:
    verifier, judge = JudgePrompt.load("verifier"), make_judge("llama")
    requests = [
        Request(WEIGHTED, ROWS, Need(labels=True, layer_logits=frozenset({"normed"}))),
        Request(verifier, ROWS, Need(labels=True)),
        Request(WEIGHTED, [], Need(labels=True)),
        Request(verifier, ROWS[:2], Need(hidden=frozenset({1}))),
    ]
    many = judge.read(requests)
    tokens = judge.forward.tokens_run
    assert judge.forwards == 1
    alone = make_judge("llama")
    for request, reading in zip(requests, many, strict=True):
        (other,) = alone.read([request])
        assert len(reading) == len(other) == len(request.rows) and reading.reasons == other.reasons
        if not request.rows:
            continue
        for a, b in ((reading.label_logprobs, other.label_logprobs), (reading.label_mass, other.label_mass)):
            assert b is None or torch.allclose(a, b, rtol=0, atol=5e-5)
        for layer, state in other.hidden.items():
            torch.testing.assert_close(reading.hidden[layer], state, rtol=1e-5, atol=5e-5)
        for lens, logits in other.layer_label_logits.items():
            torch.testing.assert_close(reading.layer_label_logits[lens], logits, rtol=1e-5, atol=5e-5)
    texts = sum(len(alone.encoder.encode([WEIGHTED.render(r)])[0].ids) for r in ROWS)
    questions = max(
        len(judge.encoder.encode([p.render({"prompt": "", "completion": ""})])[0].ids) for p in (verifier, WEIGHTED)
    )
    assert tokens < texts + len(ROWS) * questions, "the second prompt costs its question, not the text again"
    judge.read([Request(verifier, ROWS, Need(labels=True))])
    assert judge.forwards == 1, "what was read together is remembered apart"


def test_a_trainers_rewards_make_one_forward(make_judge: Any) -> None:
    judge, other = make_judge(), make_judge()
    rewards = [ProbabilityWeightedReward(judge), VerifierReward(judge), CrossLayerReward(judge)]
    elsewhere = [
        VerifierReward(other, name="elsewhere"),
        ProbabilityWeightedReward(judge, prompt="rubric", name="lacks"),
    ]
    columns = {"prompts": ["a", "a", "b"], "completions": ["one", "two", "three"]}
    earlier = {name: ["x", *texts[1:]] for name, texts in columns.items()}
    for reward in rewards:
        reward(**earlier, trainer_state=None)
    assert judge.forwards == 3, "nobody knows at the first step what a trainer has"
    judge.forwards = 0
    out = [r(**columns, trainer_state=None) for r in rewards]
    assert judge.forwards == 1 and other.forwards == 0, "not the judge of others, not a prompt that lacks its columns"
    alone = [type(r)(make_judge(), name="alone") for r in rewards]
    for mine, single in zip(out, alone, strict=True):
        np.testing.assert_allclose(mine, single(**columns), rtol=1e-5, atol=1e-6)
    rewards[0](prompts=["c"], completions=["four"])
    rewards[1](prompts=["c"], completions=["four"])
    assert judge.forwards == 3, "outside a trainer each reads for itself"
    assert len(elsewhere) == 2


def test_nothing_is_read_for_a_reward_that_the_trainer_does_not_call(make_judge: Any) -> None:
    judge = make_judge()
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge)]
    idle, asked = VerifierReward(judge), []
    many = judge.read
    judge.read = lambda requests: asked.append({r.prompt.name for r in requests}) or many(requests)

    def step(text: str, *called: Any) -> None:
        asked.clear()
        for reward in called:
            reward(prompts=["a", "b"], completions=[text, "two"], trainer_state=None)

    step("first", *rewards)
    for text in ("second", "third"):
        step(text, *rewards)
        assert set.union(*asked) == {"weighted"}, "the first step has told which rewards this trainer has"
    forwards = judge.forwards
    step("fourth", *rewards, idle)
    step("fifth", *rewards, idle)
    assert set.union(*asked) == {"weighted", "verifier"} and judge.forwards == forwards + 3, "one that joins is read"
    step("sixth", idle)
    step("seventh", idle)
    assert set.union(*asked) == {"verifier"}, "another trainer has another set"


def test_a_text_is_not_kept_between_calls(make_judge: Any) -> None:
    judge = make_judge("llama")
    rows = [{"prompt": "p " * 90, "completion": f"{i} " + "long reply " * 60} for i in range(2)]
    judge.read([Request(p, rows, Need(labels=True)) for p in (WEIGHTED, JudgePrompt.load("verifier"))])
    longest = max(len(e.ids) for e in judge.encoder.encode([WEIGHTED.render(r) for r in rows]))
    kept = sum(len(entry.rows) for entry in judge.forward.cache._entries.values())
    assert 0 < kept < longest, "the head and the prompt are kept, the replies are not"


def test_a_reward_that_comes_later_reads_again_once(make_judge: Any) -> None:
    judge = make_judge()
    first = ProbabilityWeightedReward(judge)
    first.score(["a"], ["one"])
    second = CrossLayerReward(judge)
    second.score(["a"], ["one"])
    assert judge.forwards == 2
    first.score(["a"], ["one"])
    assert judge.forwards == 2


def test_raw_and_normed_states_are_kept_apart(make_judge: Any) -> None:
    judge = make_judge()
    normed, raw = Need(hidden=frozenset({1})), Need(hidden=frozenset({1}), hidden_lens="raw")
    a, b = judge.read([Request(WEIGHTED, ROWS, normed)])[0], judge.read([Request(WEIGHTED, ROWS, raw)])[0]
    c = judge.read([Request(WEIGHTED, ROWS, normed)])[0]
    assert not torch.allclose(a.hidden[1], b.hidden[1])
    torch.testing.assert_close(a.hidden[1], c.hidden[1])


def long_row(judge: HFJudge, extra: int) -> tuple[dict[str, str], int]:
    """A row and its length in tokens."""
    row = {"prompt": "P", "completion": "1" * extra}
    return row, len(judge.encoder.encode([WEIGHTED.render(row)])[0].ids)


def test_overflow_none_and_error(make_judge: Any) -> None:
    probe = make_judge()
    row, length = long_row(probe, 50)
    depth = probe.trie(WEIGHTED).depth
    assert depth == 1
    fits, tight = make_judge(max_length=length + depth), make_judge(max_length=length + depth - 1)
    assert not torch.isnan(logps(fits, [row])).any()
    reading = tight.read(
        [Request(WEIGHTED, [ROWS[0], row, ROWS[1]], Need(True, frozenset({1, -1}), "normed", frozenset({"raw"})))]
    )[0]
    assert reading.reasons[0] is None and reading.reasons[2] is None
    assert f"{length} tokens" in str(reading.reasons[1]) and f"at most {length - 1}" in str(reading.reasons[1])
    for tensor in (
        reading.label_logprobs,
        reading.label_mass,
        *reading.hidden.values(),
        reading.layer_label_logits["raw"],
    ):
        assert tensor is not None
        assert torch.isnan(tensor[1]).all() and torch.isfinite(tensor[[0, 2]]).all()
    torch.testing.assert_close(reading.label_logprobs[[0, 2]], logps(probe, [ROWS[0], ROWS[1]]), rtol=1e-5, atol=5e-5)
    all_bad = tight.read([Request(WEIGHTED, [row], Need(True, frozenset({1}), "normed", frozenset({"normed"})))])[0]
    assert torch.isnan(all_bad.label_logprobs).all() and all_bad.hidden[1].shape == (1, 32)
    assert all_bad.layer_label_logits["normed"].shape == (1, 4, 11)
    strict = make_judge(max_length=length, on_overflow="error")
    with pytest.raises(ValueError, match=r"row 1: .* tokens, but this judge reads at most"):
        strict.read([Request(WEIGHTED, [ROWS[0], row], LABELS)])[0]
    with pytest.raises(ValueError, match="on_overflow must be"):
        make_judge(on_overflow="cut")


def test_overflow_truncate_cuts_the_middle(make_judge: Any) -> None:
    row = {"prompt": "P", "completion": "2" * 100 + "3" * 100}
    probe = make_judge()
    whole = probe.encoder.encode([WEIGHTED.render(row)])[0]
    judge = make_judge(max_length=len(whole.ids) - 99, on_overflow="truncate")
    cut, reasons = judge._encode(WEIGHTED, [row])
    start, end = cut[0].completion
    assert reasons == [None] and end - start == 100 and len(cut[0].ids) == len(whole.ids) - 100
    assert judge.encoder.tokenizer.decode(cut[0].ids[start:end]) == "2" * 50 + "3" * 50
    assert cut[0].ids[:start] == whole.ids[:start] and cut[0].ids[end:] == whole.ids[whole.completion[1] :]
    by_hand = {"prompt": "P", "completion": "2" * 50 + "3" * 50}
    torch.testing.assert_close(logps(judge, [row]), logps(probe, [by_hand]), rtol=1e-5, atol=5e-5)
    hopeless = {"prompt": "P " * 500, "completion": "short"}
    reading = judge.read([Request(WEIGHTED, [hopeless], LABELS)])[0]
    assert reading.reasons[0] is not None and torch.isnan(reading.label_logprobs).all()


def test_fifty_thousand_characters(make_judge: Any) -> None:
    row = {"prompt": "P", "completion": "many words " * 5000}
    judge = make_judge(on_overflow="truncate")
    reading = judge.read([Request(WEIGHTED, [row, ROWS[0]], LABELS)])[0]
    assert reading.reasons == (None, None) and torch.isfinite(reading.label_logprobs).all()
    none = make_judge(max_length=8192).read([Request(WEIGHTED, [row, ROWS[0]], LABELS)])[0]
    assert none.reasons[0] is not None and none.reasons[1] is None


def test_odd_rows(make_judge: Any) -> None:
    judge = make_judge()
    chat = [{"role": "user", "content": "P"}]
    rows = [
        {"prompt": "", "completion": ""},
        {"prompt": "P", "completion": "lone \ud800 surrogate"},
        {"prompt": chat, "completion": [{"role": "assistant", "content": "C"}]},
        {"prompt": chat, "completion": "C"},
        {"prompt": [], "completion": []},
        {"prompt": [{"role": "system", "content": "S"}, *chat], "completion": "C"},
    ]
    out = logps(judge, rows)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[2], out[3])
    torch.testing.assert_close(out[0], out[4])
    with pytest.raises(ValueError, match="row 1: prompt 'weighted' needs 'completion'"):
        judge.read([Request(WEIGHTED, [rows[0], {"prompt": "P"}], LABELS)])[0]
    with pytest.raises(ValueError, match="row 0: 'completion' must be text or a list of messages"):
        judge.read([Request(WEIGHTED, [{"prompt": "P", "completion": 3 + 4j}], LABELS)])[0]
    empty = judge.read([Request(WEIGHTED, [], Need(True, frozenset({1}), "normed", frozenset({"raw"})))])[0]
    assert len(empty) == 0 and empty.label_logprobs.shape == (0, 11)


def test_nan_weights_give_no_score(make_judge: Any) -> None:
    judge = make_judge()
    healthy = logps(judge, ROWS[:1])
    assert torch.isfinite(healthy).all()
    poisoned = judge.encoder.tokenizer("x", add_special_tokens=False)["input_ids"][0]
    judge.blocks.model.get_input_embeddings().weight[poisoned] = float("nan")
    judge.forward.cache.clear()
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge), VerifierReward(judge, output="log_odds")]
    for reward in rewards:
        # Only the row that holds the poisoned token is unknown.
        out = reward(prompts=["P", "P"], completions=["7", "7 x"])
        system_holds_it = (
            poisoned in judge.encoder.encode([reward.prompt.render({"prompt": "P", "completion": "7"})])[0].ids
        )
        assert out[1] is None and (out[0] is None) == system_holds_it


def test_nan_everywhere_after_load(make_judge: Any) -> None:
    judge = make_judge()
    reward = ProbabilityWeightedReward(judge)
    judge.blocks.model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    assert reward(prompts=["P", "Q"], completions=["a", "b"]) == [None, None]
    assert np.isnan(reward.score(["P"], ["c"])).all()


def test_pickle_drops_the_weights_and_works(folder: str) -> None:
    judge = HFJudge(folder, max_length=900, on_overflow="truncate")
    rewards = [ProbabilityWeightedReward(judge), CrossLayerReward(judge)]
    want = logps(judge)
    assert len(pickle.dumps(judge)) < 5000
    copies = pickle.loads(pickle.dumps(rewards))
    assert copies[0].judge is copies[1].judge and copies[0].judge is not judge
    again = copies[0].judge
    assert again.max_length == 900 and again.on_overflow == "truncate" and again.forwards == 0
    torch.testing.assert_close(logps(again), want)
    for text in "abc":
        for copy in copies:
            copy([text], ["b"], trainer_state=None)
    assert again.forwards == 1 + 2 + 2, "copies are read together, too: the rows above, each alone, then both at once"


def test_a_loaded_model_refuses_pickling(make_judge: Any) -> None:
    with pytest.raises(TypeError, match="give HFJudge the model's name or folder"):
        pickle.dumps(make_judge())
    with pytest.raises(ValueError, match="needs its tokenizer"):
        HFJudge(make_judge().blocks.model)


def test_threads_load_once_and_agree(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    original = judge_module.loading.load_frozen
    monkeypatch.setattr(judge_module.loading, "load_frozen", lambda *a, **k: loads.append(1) or original(*a, **k))
    judge, alone = HFJudge(folder), HFJudge(folder)
    batches = [[{"prompt": "P", "completion": f"c{i} {'x' * j}"} for j in range(3)] for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda b: logps(judge, b), batches))
    assert len(loads) == 1 and judge.forwards == 12
    for batch, mine in zip(batches, got, strict=True):
        torch.testing.assert_close(mine, logps(alone, batch), rtol=0, atol=0)


def test_generate(make_judge: Any) -> None:
    judge = make_judge("qwen2")
    prompt = JudgePrompt.load("likert5")
    options = {"n": 3, "temperature": 1.0, "max_new_tokens": 5}
    torch.manual_seed(3)
    want_next = torch.rand(1)
    torch.manual_seed(3)
    first = judge.generate(prompt, ROWS, seed=0, **options)
    assert torch.equal(torch.rand(1), want_next), "the caller's random state is untouched"
    assert [len(r) for r in first] == [3] * 4 and all(isinstance(t, str) for r in first for t in r)
    assert judge.generate(prompt, ROWS, seed=0, **options) == first
    assert judge.generate(prompt, ROWS, seed=1, **options) != first
    assert len({t for r in first for t in r}) > 3, "samples differ"
    greedy = judge.generate(prompt, ROWS, n=2, temperature=0.0, max_new_tokens=5, seed=0)
    assert all(a == b for a, b in greedy)
    small = replace_budget(judge, 1).generate(prompt, ROWS, n=2, temperature=0.0, max_new_tokens=5, seed=0)
    assert small == greedy, "left padding changes nothing"
    tight = make_judge("qwen2", max_length=10)
    assert tight.generate(prompt, ROWS, seed=0, **options) == [[None] * 3] * 4


def test_the_head_gets_whole_states_while_answers_are_written(make_judge: Any) -> None:
    """Of a slice of the states PyTorch would multiply text by text, and copy the head's weight for each on CPU."""
    judge = make_judge("qwen2")
    head, seen = judge.blocks.model.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[0], args[0].is_contiguous())))
    for n, temperature in ((1, 0.0), (2, 1.0)):
        judge.generate(JudgePrompt.load("likert5"), ROWS, n=n, temperature=temperature, max_new_tokens=3, seed=0)
    handle.remove()
    assert len(seen) >= 2 and all(whole for _, whole in seen) and {rows for rows, _ in seen} >= {len(ROWS)}
    assert not head._forward_pre_hooks, "nothing is left behind"


def test_generate_takes_no_settings_from_the_model(make_judge: Any) -> None:
    judge, prompt = make_judge("qwen2"), JudgePrompt.load("likert5")

    def answers() -> list[Any]:
        options = {"n": 2, "max_new_tokens": 10, "seed": 0}
        return [judge.generate(prompt, ROWS[:1], temperature=t, **options) for t in (0.0, 1.0)]

    plain, own = answers(), judge.blocks.model.generation_config
    own.update(repetition_penalty=9.0, min_p=0.9, top_k=1, do_sample=True, temperature=0.1, no_repeat_ngram_size=1)
    assert answers() == plain
    assert judge.blocks.model.generation_config is own


def replace_budget(judge: HFJudge, batch_tokens: int) -> HFJudge:
    judge.batch_tokens = batch_tokens
    return judge


def test_likert_on_a_real_judge_gives_floats_or_none(make_judge: Any) -> None:
    reward = LikertReward(make_judge(), scale_points=5, feedback=False, n_samples=2, temperature=1.5)
    out = reward(prompts=["P"] * 4, completions=["a", "b", "c", "d"])
    assert len(out) == 4 and all(x is None or 1 <= x <= 5 for x in out)


def test_adapter(folder: str, tmp_path: Any) -> None:
    import peft

    base = HFJudge(folder)
    adapted = peft.get_peft_model(
        HFJudge(folder).blocks.model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "lora")
    judge = HFJudge(folder, adapter=str(tmp_path / "lora"))
    assert not torch.allclose(logps(judge), logps(base), atol=1e-3)
    torch.testing.assert_close(
        logps(judge), logps(HFJudge(adapted.merge_and_unload(), tokenizer=base.encoder.tokenizer))
    )
    assert not any(p.requires_grad for p in judge.blocks.model.parameters())
    assert judge.revision != base.revision


def test_answers_are_kept_for_a_few_batches_only(make_judge: Any) -> None:
    judge = make_judge()
    for i in range(10):
        logps(judge, [{"prompt": "P", "completion": str(i)}])
    assert len(judge._memory._readings) <= 4 and judge.forwards == 10


def test_check_fails_early(make_judge: Any, tmp_path: Any) -> None:
    judge = make_judge()
    with pytest.raises(ValueError, match="has no labels to read"):
        judge.check(JudgePrompt.load("likert5"), LABELS)
    with pytest.raises(ValueError, match="has no labels to read"):
        ProbabilityWeightedReward(judge, prompt="likert5")


def test_reading_is_replaced_not_shared() -> None:
    judge = FakeJudge()
    reading = judge.read([Request(WEIGHTED, ROWS, LABELS)])[0]
    assert replace(reading, reasons=()).reasons == () and len(reading) == 4
