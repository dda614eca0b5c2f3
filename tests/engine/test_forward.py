from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.engine.blocks import Blocks, reference_states
from latent_rewards.engine.padded import read_states

WEIGHTED = JudgePrompt.load("weighted")
VERIFIER = JudgePrompt.load("verifier")
ROWS = [
    {"prompt": "Name a prime.", "completion": "7"},
    {"prompt": "Name a prime.", "completion": ""},
    {"prompt": "Name a prime.", "completion": "Nine is a prime number, and so is ten. " * 6},
    {"prompt": "", "completion": "Hello there, how do you do?"},
    {"prompt": "Say it in French, please", "completion": "Bonjour"},
]
NEED = Need(labels=True, hidden=frozenset({1, 2, 3}), layer_logits=frozenset({"raw", "normed"}))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 5e-5) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def reference_reading(judge: HFJudge, prompt: JudgePrompt, need: Need) -> dict[str, Any]:
    """Label log-probs, hidden states and label logits of every layer from one stock forward per sequence."""
    blocks, trie = judge.blocks, judge.trie(prompt)
    ids = [e.ids for e in judge.encoder.encode([prompt.render(r) for r in ROWS])]
    final, steps = [], [[] for _ in trie.contexts]
    inner: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(blocks.n_layers)}
    states: dict[int, list[Any]] = {c: [] for c in range(len(trie.contexts))}
    for row in ids:
        for c, context in enumerate(trie.contexts):
            logits, at = reference_states(
                blocks, [[*row, *context]], [[len(row) + len(context) - 1]], layers=range(blocks.n_layers)
            )
            steps[c].append(logits[0])
            states[c].append(at)
        assert states[0][-1].final is not None
        final.append(states[0][-1].final[0])
        for layer in inner:
            inner[layer].append(states[0][-1].inner[layer][0])
    logits_C = [torch.stack(s) for s in steps]
    logp = trie.log_probs(
        [z[:, list(ch)] for z, ch in zip(logits_C, trie.children, strict=True)],
        [torch.logsumexp(z, -1) for z in logits_C],
    )
    layer_logits = {lens: reference_layer_logits(judge, prompt, states, lens) for lens in need.layer_logits}
    hidden = {layer: torch.stack(rows) for layer, rows in inner.items()}
    return {"logp": logp, "final": torch.stack(final), "inner": hidden, "layer_logits": layer_logits}


@torch.no_grad()
def reference_layer_logits(judge: HFJudge, prompt: JudgePrompt, states: Any, lens: str) -> torch.Tensor:
    """(B, L+1, K) by the model's own norm and head: the layer's logits at the root, the output's log-probs below it."""
    blocks, trie = judge.blocks, judge.trie(prompt)
    output = [blocks.head.own(torch.cat([s.final for s in states[c]])) for c in range(len(trie.contexts))]
    norms = [torch.zeros(len(ROWS)), *(torch.logsumexp(z, -1) for z in output[1:])]
    out = []
    for layer in range(blocks.n_layers + 1):
        last = layer == blocks.n_layers
        h = torch.cat([s.final if last else s.inner[layer] for s in states[0]])
        h = blocks.norm(h) if lens == "normed" and not last else h
        logits = [blocks.head.own(h), *output[1:]]
        out.append(trie.log_probs([z[:, list(ch)] for z, ch in zip(logits, trie.children, strict=True)], norms))
    return torch.stack(out, 1)


@pytest.mark.parametrize("prompt", [WEIGHTED, VERIFIER], ids=lambda p: p.name)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_reading_equals_the_reference(make_judge: Any, family: str, prompt: JudgePrompt) -> None:
    judge = make_judge(family, "digits")
    assert judge.blocks.plain_head, f"{family}: its head is known, so no (P, V) logits are needed"
    got, want = judge.read([Request(prompt, ROWS, NEED)])[0], reference_reading(judge, prompt, NEED)
    close(got.label_logprobs, want["logp"])
    assert set(got.hidden) == {1, 2, 3}
    for layer, states in got.hidden.items():
        with torch.no_grad():
            last = layer == judge.n_layers
            close(states, want["final"] if last else judge.blocks.norm(want["inner"][layer]))
    for lens in ("raw", "normed"):
        close(got.layer_label_logits[lens], want["layer_logits"][lens], atol=2e-4)
        assert got.layer_label_logits[lens].shape == (len(ROWS), judge.n_layers + 1, len(prompt.labels))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("batch_tokens", [1, 700, 100_000])
def test_states_under_several_budgets(make_judge: Any, family: str, batch_tokens: int) -> None:
    blocks = make_judge(family, "digits").blocks
    torch.manual_seed(0)
    sequences = [torch.randint(3, 300, (n,)).tolist() for n in (40, 3, 1, 90, 40, 17)]
    positions = [[39], [2, 0], [0], [89, 12, 50], [3], [16]]
    logits, want = reference_states(blocks, sequences, positions, layers=range(blocks.n_layers))
    got = read_states(blocks, sequences, positions, layers=range(blocks.n_layers + 1), batch_tokens=batch_tokens)
    assert got.final is not None and want.final is not None
    close(got.final, want.final)
    for layer, rows in want.inner.items():
        close(got.inner[layer], rows)
    with torch.no_grad():
        close(blocks.norm(got.inner[blocks.n_layers]), want.final)
        close(blocks.head_logits(got.final), logits)
        close(blocks.head_logits(got.final, [5, 9]), logits[:, [5, 9]])
        close(blocks.log_normaliser(got.final), torch.logsumexp(logits, -1))
        close(blocks.log_normaliser(got.final, chunk=50), torch.logsumexp(logits, -1))


def test_shared_prefixes_change_nothing(make_judge: Any) -> None:
    blocks = make_judge("llama", "digits").blocks
    torch.manual_seed(1)
    head, tails = torch.randint(3, 300, (60,)).tolist(), [[5], [5, 6, 7], [8] * 20, []]
    sequences = [[*head, *t] for t in tails] + [head[:30]]
    positions = [[len(s) - 1] for s in sequences]
    _, want = reference_states(blocks, sequences, positions)
    got = read_states(blocks, sequences, positions)
    close(got.final, want.final)  # type: ignore[arg-type]


def test_only_what_is_wanted_comes_back(make_judge: Any) -> None:
    blocks = make_judge("llama", "digits").blocks
    got = read_states(blocks, [[3, 4, 5]], [[2]], layers=[1], final=False)
    assert got.final is None and set(got.inner) == {1}
    assert got.inner[1].shape == (1, 32) and not got.inner[1].requires_grad


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_final_soft_capping_is_there(make_judge: Any, family: str) -> None:
    blocks = make_judge(family, "digits").blocks
    with torch.no_grad():
        logits = blocks.head_logits(100 * torch.ones(1, 32) * torch.sign(blocks.head.weight[7]))
    assert (logits.abs().max() <= 5.0) == (family == "gemma2")


def test_a_head_we_do_not_know_is_used_as_it_is(make_model: Any, tokenizers: dict[str, Any]) -> None:
    model = make_model("llama", tokenizers["digits"])
    head = model.lm_head
    head.register_forward_hook(lambda module, args, out: 3 * torch.tanh(out))
    judge = HFJudge(model, tokenizer=tokenizers["digits"])
    assert not judge.blocks.plain_head
    got = judge.read([Request(WEIGHTED, ROWS[:2], Need(labels=True))])[0]
    ids = judge.encoder.encode([WEIGHTED.render(ROWS[0])])[0].ids
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    five = tokenizers["digits"]("5", add_special_tokens=False)["input_ids"][0]
    close(got.label_logprobs[0, 5], torch.log_softmax(logits, -1)[five].detach())


def test_models_that_cannot_be_read(make_model: Any, tokenizers: dict[str, Any]) -> None:
    model = make_model("llama", tokenizers["digits"])
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ValueError, match="no list of 3 decoder blocks"):
        Blocks(model)
    model = make_model("llama", tokenizers["digits"])
    model.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        HFJudge(model, tokenizer=tokenizers["digits"]).blocks  # noqa: B018
    model = make_model("llama", tokenizers["digits"])
    model.model.layers[0].mlp.up_proj.weight.data = torch.zeros(0)
    with pytest.raises(ValueError, match="sharded or empty"):
        HFJudge(model, tokenizer=tokenizers["digits"]).blocks  # noqa: B018
