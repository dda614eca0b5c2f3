"""Tiny models of many architectures read what their own plain forward of each text says, or are refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers

from benchmarks import architectures
from benchmarks.architectures import TOLERANCE, compare, prompts, texts
from benchmarks.tiny_models import ARCHITECTURES, EDGE, OPTIONS, VARIANTS, byte_tokenizer, tiny_model
from latent_rewards import HFJudge, Need, Request
from latent_rewards.engine.decoder import find_decoder
from latent_rewards.engine.sampling import sample_answers

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = 160  # tokens: a little more than the prompt of `texts` has
LONGROPE = {"rope_parameters": {**OPTIONS["phi3"]["rope_parameters"], "original_max_position_embeddings": SHORT}}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}
# (architecture, options, how its texts are read)
DOZEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "shared prefixes"),
    "longrope": ("phi3", LONGROPE | {"original_max_position_embeddings": SHORT}, "apart"),
    "dynamic": ("llama", DYNAMIC | {"max_position_embeddings": SHORT}, "apart"),
    "window": ("mistral", {"sliding_window": SHORT}, "shared prefixes"),
    "mixed windows": ("gemma2", {"sliding_window": SHORT}, "shared prefixes"),
    "window in the mask": (
        "qwen2_moe", {"use_sliding_window": True, "max_window_layers": 4, "sliding_window": SHORT}, "shared prefixes",
    ),
    "window in the mask too": ("phimoe", {"sliding_window": SHORT}, "shared prefixes"),
    "chunks": (
        "llama4_text", {"attention_chunk_size": SHORT, "floor_scale": 8192, "num_hidden_layers": 4}, "shared prefixes",
    ),
    "temperature": (
        "llama4_text", {"floor_scale": SHORT, "attn_scale": 0.5, "num_hidden_layers": 4}, "shared prefixes",
    ),
    "sinks": ("gpt_oss", {"sliding_window": SHORT}, "shared prefixes"),
    "heads of two sizes": ("deepseek_v3", {}, "shared prefixes"),
    "two attentions a layer": ("diffllama", {}, "more than 2 attentions in 2 layers"),
    "learned positions": ("gpt2", {}, "shared prefixes"),
    "states": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, "whole texts"),
    "decoder of its own name": ("modernbert-decoder", {"sliding_window": SHORT}, "shared prefixes"),
}  # fmt: skip


def sound(found: dict[str, Any]) -> None:
    assert found["spread"] > 1e-3, "all texts alike: the comparison says nothing"
    assert all(error < TOLERANCE for error in found["differences"].values()), found["differences"]
    assert found["invariant"]


@pytest.mark.parametrize("name", sorted(DOZEN))
def test_a_dozen_read_what_the_plain_forward_says(name: str) -> None:
    architecture, options, how = DOZEN[name]
    found = compare(tiny_model(architecture, **{"num_hidden_layers": 2} | options), SHORT)
    sound(found)
    assert how in found["shared"] and found["unshared"].startswith("whole texts")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIANTS])
def test_every_architecture_that_can_be_built(name: str) -> None:
    found = architectures.examine(name, 300)
    if "not built" in found:
        pytest.skip(found["not built"])
    assert "failed" not in found, found
    if "refused" not in found:
        sound(found)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet", "xlm"])
def test_models_that_look_ahead_are_refused(name: str) -> None:
    model = tiny_model(name, **({"is_decoder": False} if "bert" in name else {}))
    with pytest.raises(ValueError, match=f"{type(model).__name__} is not a causal language model"):
        _ = HFJudge(model, tokenizer=byte_tokenizer()).blocks


def test_the_sweep_reads_both_sides_of_the_edge() -> None:
    judge = HFJudge(tiny_model("llama"), tokenizer=byte_tokenizer())
    for edge in (SHORT, EDGE):
        lengths = [len(e.ids) for e in judge.encoder.encode([prompts()[0].render(row) for row in texts(judge, edge)])]
        assert {edge - 1, edge, edge + 1} <= set(lengths) and min(lengths) < edge - 8 and max(lengths) == edge + 150
    assert judge.trie(prompts()[1]).depth == 2, "a label's later tokens reach over the edge"


def test_what_was_read_before_does_not_matter() -> None:
    """Dynamic NTK keeps the frequencies of the longest call so far."""
    model = tiny_model("llama", **DYNAMIC, max_position_embeddings=SHORT)
    judge, need = HFJudge(model, tokenizer=byte_tokenizer()), Need(labels=True)
    rows, prompt = texts(judge, SHORT), prompts()[1]
    first = judge.read([Request(prompt, rows[1:2], need)])[0].label_logprobs
    for row in (rows[-2], rows[1]):
        judge.forget()
        again = judge.read([Request(prompt, [row], need)])[0].label_logprobs
    assert torch.equal(first, again)


def test_layers_that_switch_in_different_ways_do_not_disturb_each_other() -> None:
    """Longrope writes into the buffer that dynamic NTK's frequencies are set back in."""
    layers = ["sliding_attention", "full_attention"]
    ropes = {"full_attention": LONGROPE["rope_parameters"], "sliding_attention": DYNAMIC["rope_parameters"]}
    options = {"layer_types": layers, "rope_parameters": ropes, "sliding_window": 1024, "num_hidden_layers": 2}
    model = tiny_model("gemma3_text", **options, max_position_embeddings=SHORT + 32)
    judge, need = HFJudge(model, tokenizer=byte_tokenizer()), Need(labels=True)
    rows, prompt = texts(judge, SHORT), prompts()[1]
    first = judge.read([Request(prompt, rows[1:2], need)])[0].label_logprobs
    for row in (rows[-2], rows[1]):
        judge.forget()
        again = judge.read([Request(prompt, [row], need)])[0].label_logprobs
    assert torch.equal(first, again)


def test_a_fault_that_shows_in_long_texts_only_ends_sharing(caplog: pytest.LogCaptureFixture) -> None:
    """A window that neither mask nor attention says: found by reading the first long text alone too."""
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    original = attention.forward

    def forgetful(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out, *rest = original(hidden_states, *args, **kwargs)
        return (out * (1 + 0.1 * (torch.arange(out.shape[1]) > 120)[None, :, None]), *rest)

    attention.forward = forgetful
    judge, need = HFJudge(model, tokenizer=byte_tokenizer()), Need(labels=True)
    unshared = HFJudge(model, tokenizer=byte_tokenizer(), share_prefixes=False)
    rows, prompt = texts(judge, SHORT), prompts()[0]
    assert judge.forward.usable, "at load no text is long enough"
    with caplog.at_level(logging.WARNING, "latent_rewards"):
        got = judge.read([Request(prompt, rows, need)])[0].label_logprobs
    torch.testing.assert_close(got, unshared.read([Request(prompt, rows, need)])[0].label_logprobs)
    assert not judge.forward.usable and "relative difference" in judge.forward.sharing
    assert [r for r in caplog.records if "from now on" in r.message and "tokens" in r.message]


def test_a_model_that_padding_disturbs_reads_each_text_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mamba", num_hidden_layers=2)
    mixer = model.backbone.layers[0].mixer
    original = mixer.forward
    mixer.forward = lambda hidden, *args, **kwargs: original(hidden, *args, **kwargs) * hidden.shape[1] / 50
    judge = HFJudge(model, tokenizer=byte_tokenizer())
    with caplog.at_level(logging.WARNING, "latent_rewards"):
        found = compare(model, SHORT, {"shared": {}})
    assert found["differences"]["shared"] < TOLERANCE and "each alone" in found["shared"]
    assert not judge.forward.ways.pads and [r for r in caplog.records if "padded batches do not work" in r.message]


@pytest.mark.parametrize("rope", ["longrope", "dynamic"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_greedy_answer_is_the_same_alone_and_in_a_batch(rope: str, n: int) -> None:
    architecture, options, _ = DOZEN[rope]
    model, tok = tiny_model(architecture, **options), byte_tokenizer()
    model.generation_config.eos_token_id = None
    tok.eos_token = None
    torch.manual_seed(1)
    ids = [torch.randint(0, 256, (length,)).tolist() for length in (30, SHORT - 4, SHORT - 1, SHORT, SHORT + 1, 300)]
    cold = {"temperature": 0.0 if n == 1 else 1e-4, "max_new_tokens": 8, "seed": 0}
    together = sample_answers(model, tok, ids, n=n, **cold)
    for row, answers in zip(ids, together, strict=True):
        assert sample_answers(tiny_model(architecture, **options), tok, [row], n=1, **cold)[0] * n == answers


def test_the_decoder_is_found_where_get_decoder_does_not_find_it() -> None:
    for name in ("llama4_text", "modernbert-decoder"):
        model = tiny_model(name)
        decoder, blocks = find_decoder(model, model.config)
        assert decoder is model.model and blocks is model.model.layers
    with pytest.raises(ValueError, match="HrmTextForCausalLM: no list of 32 decoder blocks"):
        find_decoder(model := tiny_model("hrm_text"), model.config)


def test_the_longest_text_is_that_of_config_and_learned_positions() -> None:
    def limit(model: Any) -> int:
        return HFJudge(model, tokenizer=byte_tokenizer()).blocks.longest_text

    assert limit(tiny_model("mamba", num_hidden_layers=2)) == 1 << 30
    assert limit(tiny_model("gpt2")) == 2048
    assert limit(tiny_model("roberta", pad_token_id=1)) == 2046, "it counts from behind its padding token"
    assert limit(tiny_model("llama", **DYNAMIC, max_position_embeddings=SHORT)) == 4 * SHORT


def test_the_table_says_what_failed_and_why() -> None:
    read = {"differences": {"shared": 1e-6, "unshared": 2e-3}, "shared": "whole | texts", "invariant": True}
    read |= {"spread": 1e-6}
    rest = {"b": {"refused": "looks\nahead"}, "c": {"not built": "no"}, "d": {"failed": "x"}}
    page = architectures.table({"a": read, **rest})
    assert "0 of 1 architectures read" in page and "| a | whole / texts | 1.0e-06, 2.0e-03 | yes |" in page
    assert "| b | refused: looks ahead | | |" in page and "- c: no" in page and "FAILED: x" in page
    assert "say nothing: a" in page
    assert transformers.__version__ in page
