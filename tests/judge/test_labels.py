from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latent_rewards import HFJudge, JudgePrompt, Labels, Need, Request
from latent_rewards.judge.encoding import Encoder
from latent_rewards.judge.labels import LabelTrie, log1mexp
from latent_rewards.readouts import expected_rating

ROWS = [
    {"prompt": "Name a prime.", "completion": "7"},
    {"prompt": "Name a prime.", "completion": "Nine is a prime number, and so is ten."},
    {"prompt": "Say hello in French", "completion": ""},
]


def digit_trie() -> LabelTrie:
    """Labels "1" and "10" where token 1 is "1", token 2 is "0", token 0 is neither."""
    return LabelTrie(2, ((1,), (1, 2)), (0, 1))


def test_trie_by_hand() -> None:
    trie = digit_trie()
    assert trie.contexts == ((), (1,)) and trie.children == ((1,), (2,)) and trie.depth == 1
    assert trie.chains() == [((1,), (0, 1))]
    # p(1) = 0.8 and p(0 | 1) = 0.75, so "10" has 0.6 and "1" keeps 0.2.
    root, inner = torch.tensor([[0.8]]).log(), torch.tensor([[0.75]]).log()
    got = trie.log_probs([root, inner], [torch.zeros(1), torch.zeros(1)]).exp()
    torch.testing.assert_close(got, torch.tensor([[0.2, 0.6]]))


def test_spellings_are_summed_by_hand() -> None:
    trie = LabelTrie(2, ((1,), (2,), (3,)), (0, 0, 1))
    logits = torch.tensor([[0.1, 0.2, 0.3]]).log()
    got = trie.log_probs([logits], [torch.zeros(1)]).exp()
    torch.testing.assert_close(got, torch.tensor([[0.3, 0.3]]))


def test_normaliser_is_taken_off() -> None:
    trie = LabelTrie(2, ((0,), (1,)), (0, 1))
    logits = torch.tensor([[2.0, 1.0]])
    norm = torch.tensor([math.log(math.e**2 + math.e + 1.0)])  # a third token with logit 0
    got = trie.log_probs([logits], [norm]).exp()
    total = math.e**2 + math.e + 1.0
    torch.testing.assert_close(got, torch.tensor([[math.e**2 / total, math.e / total]]))


@pytest.mark.parametrize("x", [-1e-9, -1e-4, -0.1, -0.6931, -0.6932, -1.0, -10.0, -80.0])
def test_log1mexp(x: float) -> None:
    got = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert got == pytest.approx(math.log(-math.expm1(x)), rel=1e-12)


def test_log1mexp_limits() -> None:
    got = log1mexp(torch.tensor([0.0, 1e-7, -math.inf, math.nan]))
    assert got[0] == got[1] == -math.inf and got[2] == 0 and math.isnan(got[3])


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), min_size=2, max_size=8), st.integers(0, 99)
)
def test_disjoint_paths_never_hold_more_than_one(paths: set[tuple[int, ...]], seed: int) -> None:
    torch.manual_seed(seed)
    trie = LabelTrie(len(paths), tuple(sorted(paths)), tuple(range(len(paths))))
    logits = [3 * torch.randn(1, 5) for _ in trie.contexts]
    child = [z[:, list(c)] for z, c in zip(logits, trie.children, strict=True)]
    logp = trie.log_probs(child, [torch.logsumexp(z, -1) for z in logits])
    assert logp.exp().sum() <= 1 + 1e-5
    read = sorted(i for _, contexts in trie.chains() for i in contexts)
    assert read == list(range(len(trie.contexts))), "each context is read once"


def test_collisions_and_empty_labels() -> None:
    labels = Labels.from_mapping({"yes": 1, "Yes": 0})
    with pytest.raises(ValueError, match="same tokens"):
        LabelTrie.build(labels, lambda text: [[ord(c) for c in text.lower()]])
    with pytest.raises(ValueError, match="no token for 'yes'"):
        LabelTrie.build(labels, lambda text: [[]])
    with pytest.raises(ValueError, match="at least two"):
        Labels.from_mapping({"a": 1})
    with pytest.raises(ValueError, match="share the spelling"):
        Labels.from_mapping({"a": 1, "b": 0}, {"a": ["b"]})
    with pytest.raises(ValueError, match="unknown labels"):
        Labels.from_mapping({"a": 1, "b": 0}, {"c": ["d"]})
    assert Labels.from_mapping({"a": 1, "b": 0}).key == Labels.from_mapping({"a": 1.0, "b": 0.0}).key
    assert Labels.from_mapping({"a": 1, "b": 0}).key != Labels.from_mapping({"b": 0, "a": 1}).key


class BruteForce:
    """Probabilities of token sequences, one plain stock forward for each context."""

    def __init__(self, judge: HFJudge, ids: list[int]) -> None:
        self.judge, self.ids = judge, ids
        self.next: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def prob(self, path: tuple[int, ...]) -> Tensor:
        """Probability that the model's next tokens are `path`, in float64."""
        total = torch.ones((), dtype=torch.float64)
        for i, token in enumerate(path):
            if path[:i] not in self.next:
                logits = self.judge.blocks.model(input_ids=torch.tensor([[*self.ids, *path[:i]]])).logits[0, -1]
                self.next[path[:i]] = torch.softmax(logits.double(), -1)
            total = total * self.next[path[:i]][token]
        return total


def spelled(judge: HFJudge, text: str) -> set[tuple[int, ...]]:
    """Token sequences of a label, alone and after a line break, straight from the tokenizer."""
    tok = judge.encoder.tokenizer
    alone = tuple(tok(text, add_special_tokens=False)["input_ids"])
    line = tok("\n", add_special_tokens=False)["input_ids"]
    both = tok("\n" + text, add_special_tokens=False)["input_ids"]
    return {alone, tuple(both[len(line) :])} if both[: len(line)] == line else {alone}


def brute_force(judge: HFJudge, prompt: JudgePrompt, row: dict[str, str]) -> Tensor:
    """(K,) log-probability of generating exactly each label: its sequences less those that go on to another label."""
    assert prompt.labels is not None
    brute = BruteForce(judge, judge.encoder.encode([prompt.render(row)])[0].ids)
    paths = [{p for text in group for p in spelled(judge, text)} for group in prompt.labels.spellings]
    every = set().union(*paths)
    out = []
    for group in paths:
        mass = torch.zeros((), dtype=torch.float64)
        for path in group:
            mass += brute.prob(path)
            for longer in {o[: len(path) + 1] for o in every if len(o) > len(path) and o[: len(path)] == path}:
                mass -= brute.prob(longer)
        out.append(mass.log())
    return torch.stack(out)


def check_exact(judge: HFJudge, name: str, rows: list[dict[str, str]]) -> None:
    prompt = JudgePrompt.load(name)
    got = judge.read([Request(prompt, rows, Need(labels=True))])[0]
    want = torch.stack([brute_force(judge, prompt, r) for r in rows])
    assert (got.label_logprobs.double().exp() - want.exp()).abs().max() < 1e-5
    assert (got.label_logprobs.double() - want).abs().max() < 1e-4, "and the smallest labels are right relatively"
    torch.testing.assert_close(got.label_mass.double(), want.exp().sum(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["weighted", "verifier"])
@pytest.mark.parametrize("tokenizer", ["digits", "numbers", "plain", "metaspace"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_exact_on_tiny_models(make_judge: Any, family: str, tokenizer: str, prompt: str) -> None:
    check_exact(make_judge(family, tokenizer), prompt, ROWS)


@pytest.mark.parametrize("prompt", ["weighted", "verifier"])
def test_exact_on_the_embedded_judge(embedded: HFJudge, prompt: str) -> None:
    check_exact(embedded, prompt, ROWS[:1])


def test_ten_is_two_tokens_or_one(make_judge: Any) -> None:
    weighted = JudgePrompt.load("weighted")
    assert make_judge("llama", "digits").trie(weighted).depth == 1
    assert make_judge("llama", "numbers").trie(weighted).depth == 0


def first_token_probs(judge: HFJudge, prompt: JudgePrompt, row: dict[str, str]) -> Tensor:
    """(K,) what reading only the first token of each label gives: a label with a known first token is that label."""
    assert prompt.labels is not None
    ids = judge.encoder.encode([prompt.render(row)])[0].ids
    with torch.no_grad():
        p = torch.softmax(judge.blocks.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
    seen: set[int] = set()
    out = []
    for name in prompt.labels.names:
        first = judge.encoder.tokenizer(name, add_special_tokens=False)["input_ids"][0]
        out.append(p[first] if first not in seen else torch.zeros((), dtype=torch.float64))
        seen.add(first)
    return torch.stack(out)


def teach_ten(judge: HFJudge, row: dict[str, str]) -> None:
    """Turn the head so that at the rating position, and after a "1", the model is nearly sure of "10"."""
    blocks, prompt = judge.blocks, JudgePrompt.load("weighted")
    ids = judge.encoder.encode([prompt.render(row)])[0].ids
    path = judge.encoder.tokenizer("10", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for i, token in enumerate(path):
            at = blocks.decoder(input_ids=torch.tensor([[*ids, *path[:i]]])).last_hidden_state[0, -1]
            blocks.head.weight[token] += at * (15.0 - blocks.head.weight[token] @ at) / (at @ at)


@pytest.mark.parametrize("tokenizer", ["digits", "numbers"])
def test_first_token_reading_counts_ten_as_one(make_judge: Any, tokenizer: str) -> None:
    judge, prompt, row = make_judge("llama", tokenizer), JudgePrompt.load("weighted"), ROWS[0]
    teach_ten(judge, row)
    assert prompt.labels is not None
    naive = first_token_probs(judge, prompt, row)
    exact = judge.read([Request(prompt, [row], Need(labels=True))])[0].label_logprobs[0].double()
    ten = exact[10].exp()
    assert ten > 0.9, "this judge all but says 10"
    rating = expected_rating(exact[None].float(), prompt.labels.values).item()
    naive_rating = expected_rating(naive.clamp(min=1e-30).log()[None].float(), prompt.labels.values).item()
    assert rating > 9
    if tokenizer == "digits":
        torch.testing.assert_close(naive[1], exact[1].exp() + ten, rtol=0, atol=1e-5)
        assert naive_rating < 2, "the best rating there is, read as nearly the worst"
    else:
        torch.testing.assert_close(naive, exact.exp(), rtol=0, atol=1e-5)
        assert naive_rating == pytest.approx(rating, abs=1e-3)


def test_first_token_reading_on_the_embedded_judge(embedded: HFJudge) -> None:
    prompt, row = JudgePrompt.load("weighted"), ROWS[0]
    naive = first_token_probs(embedded, prompt, row)
    exact = embedded.read([Request(prompt, [row], Need(labels=True))])[0].label_logprobs[0].double().exp()
    assert exact[10] > 0.01, "this judge does say 10"
    torch.testing.assert_close(naive[1], exact[1] + exact[10], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        naive[[0, 2, 3, 4, 5, 6, 7, 8, 9]], exact[[0, 2, 3, 4, 5, 6, 7, 8, 9]], atol=1e-5, rtol=0
    )


def test_colliding_labels_name_the_file(tmp_path: Any, tokenizers: dict[str, Any]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('kind: label\nbody: "{{ prompt }} {{ completion }}"\nlabels: {"a": 0, "b": 1}\n')
    encoder = Encoder(tokenizers["digits"])
    encoder._spellings = lambda text: [[5]]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"mine\.yaml.*same tokens"):
        encoder.trie(JudgePrompt.load(path))
