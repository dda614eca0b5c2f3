"""Fuzz targets without files: rows, labels, tokenisation, the prefix tree, sampled ratings."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.fuzz.draw import WORDS, Draw
from latent_rewards.engine.prefix_tree import build_tree
from latent_rewards.judge.encoding import Encoder
from latent_rewards.judge.labels import Labels, LabelTrie
from latent_rewards.judge.prompts import Dialogue, JudgePrompt, prompt_folder
from latent_rewards.rewards.likert import parse_rating


@functools.cache
def shipped() -> tuple[JudgePrompt, ...]:
    """All shipped prompts, showing replies whole."""
    return tuple(
        JudgePrompt.load(p).with_thoughts("keep", keep_unfinished=True) for p in sorted(prompt_folder().glob("*.yaml"))
    )


def check_dialogue(prompt: JudgePrompt, row: dict[str, Any], dialogue: Dialogue) -> None:
    """Texts stand whole in segments of their own, and our words are those of any other row with the same blanks."""
    segments = [s for t in dialogue.turns for s in t.segments]
    texts = {k: v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for k, v in row.items() if _is_text(v)}
    for slot in {s for s in prompt.slots if texts.get(s)} & {"prompt", "completion"} - {prompt.target}:
        assert [len(s.text) for s in segments if s.slot == slot] == [len(row[slot])], slot
    assert not any("\ud800" <= c <= "\udfff" for s in segments for c in s.text)
    other = {k: ("x" if v else v) if _is_text(v) else v for k, v in row.items()}
    ours = [s.text for t in prompt.render(other).turns for s in t.segments if s.slot is None]
    assert [s.text for s in segments if s.slot is None] == ours, "their words changed ours"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def rows(d: Draw) -> None:
    """Any JSON as prompt, completion and columns: a dialogue, or a ValueError."""
    prompt = d.choice(shipped())
    row = {slot: d.text() if d.flag() else d.value() for slot in prompt.slots}
    try:
        dialogue = prompt.render(row)
    except ValueError:
        return
    check_dialogue(prompt, row, dialogue)


def labels(d: Draw) -> None:
    """Labels on a random tokeniser: a clear error, or exact probabilities that no two labels share."""
    names = list(dict.fromkeys(["1", d.choice(("10", "0", "ab")), *d.several(lambda: d.text(2), 3)]))
    spell = {n: d.several(lambda: d.text(2), 2) for n in names if d.flag()}
    size = d.number(2, 30)
    try:
        made = Labels.from_mapping({n: d.number(-3, 10) for n in names}, spell)
        trie = LabelTrie.build(made, lambda text: [[(ord(c) * 7 + size) % size for c in text]])
    except ValueError:
        return
    seen = [c for _, contexts in trie.chains() for c in contexts]
    assert sorted(seen) == list(range(len(trie.contexts))), "every inner node is read once"
    rng = np.random.default_rng(d.number(0, 2**31))
    table = [torch.log_softmax(torch.tensor(rng.normal(0, 3, size)), 0) for _ in trie.contexts]
    child = [table[i][list(ids)][None].float() for i, ids in enumerate(trie.children)]
    got = trie.log_probs(child, [torch.zeros(1)] * len(child)).exp()[0].double()
    want = _brute_force(trie, table)
    assert got.shape == (len(made),) and float(got.sum()) <= 1 + 1e-4
    assert np.allclose(got, want, atol=2e-5), (got, want)


def _brute_force(trie: LabelTrie, table: list[torch.Tensor]) -> np.ndarray:
    """Walks the trie token by token: what stops at a path's end belongs to its label."""
    out = np.zeros(trie.n_labels)
    owner = dict(zip(trie.paths, trie.owners, strict=True))
    at = {c: i for i, c in enumerate(trie.contexts)}
    for path in trie.paths:
        p = math.exp(sum(float(table[at[path[:i]]][t]) for i, t in enumerate(path)))
        if path in at:
            p *= 1 - sum(math.exp(float(table[at[path]][t])) for t in trie.children[at[path]])
        out[owner[path]] += p
    return out


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ODD = (
    "<think>",
    "</think>",
    "aa",
    "\u2603",
    "<thi",
    "<<think>>",
    " 10",
    "Yes",
    "\n\n",
    "{{",
    "\u0416\u0416",
    "|>",
    "<unk>",
)


@functools.cache
def encoders() -> tuple[tuple[Encoder, bool], ...]:
    """24 byte-level tokenizers with random added tokens; the second value says whether they keep every character."""
    return tuple(_encoder(random.Random(seed)) for seed in range(24))


def _encoder(rng: random.Random) -> tuple[Encoder, bool]:
    core = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rng.random() < 0.5 else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    keeps = rng.random() < 0.7
    if not keeps:
        core.normalizer = rng.choice([normalizers.NFKC(), normalizers.Lowercase(), normalizers.NFD()])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(["the quick brown fox yes no 10 7 ### Reply <think> "] * 5, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": special[1:2]})
    for text in rng.sample(_ODD, rng.randint(0, 8)):
        flags = {k: rng.random() < 0.3 for k in ("single_word", "lstrip", "rstrip", "normalized")}
        fast.add_tokens([AddedToken(text, special=rng.random() < 0.4, **flags)])
    fast.chat_template = CHATML
    return Encoder(fast), keeps


def tokens(d: Draw) -> int:
    """Untrusted text on random tokenizers: no control token but ours, and the same characters back, or a reason."""
    encoder, keeps = d.choice(encoders())
    prompt = d.choice([p for p in shipped() if p.slots == ("completion", "prompt")])
    pieces = (*encoder.control.values(), "a", " ", "1")
    texts = [d.text(10, pieces if d.flag() else (*WORDS, *pieces)) for _ in range(8)]
    shared = d.text(4)
    both = [prompt.render({"prompt": shared, "completion": t}) for t in [*texts, "QZQZ"]]
    *encoded, plain = encoder.encode(both)
    ours = [i for i in plain.ids if i in encoder.control]
    whole = encoder.tokenizer.decode(plain.ids, clean_up_tokenization_spaces=False)
    for text, e in zip(texts, encoded, strict=True):
        if e.problem is not None or plain.problem is not None:
            assert any(len(t) == 1 for t in encoder.control.values()), (text, e.problem)
            continue
        assert [i for i in e.ids if i in encoder.control] == ours, text
        assert e.head <= e.completion[0] <= e.completion[1] <= len(e.ids), text
        if keeps:
            back = encoder.tokenizer.decode(e.ids, clean_up_tokenization_spaces=False)
            assert back == whole.replace("QZQZ", _plain(text)), text
    return len(texts)


def _plain(text: str) -> str:
    """Lone surrogates have no spelling."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def tree(d: Draw) -> None:
    """Prefix trees: every read sees exactly its sequence's tokens, and nothing is run that no read needs."""
    stems = [[d.number(0, 2) for _ in range(d.number(0, 6))] for _ in range(d.number(1, 3))]
    sequences = [[*d.choice(stems), *(d.number(0, 2) for _ in range(d.number(0, 6)))] for _ in range(d.number(1, 8))]
    positions = [[d.number(0, len(s)) for _ in range(d.number(0, 2))] for s in sequences]
    head = d.number(0, 3)
    limits = [d.number(0, 12) for _ in sequences] if d.flag() else None
    options = {"min_saving": d.number(1, 6), "min_kept": d.number(0, 4)}
    try:
        nodes = build_tree(sequences, positions, head=head, keepable=limits, **options)
    except ValueError:
        bad = any(not s or any(p >= len(s) for p in at) for s, at in zip(sequences, positions, strict=True))
        assert bad or len({tuple(s[:head]) for s in sequences}) > 1 or min(map(len, sequences)) < head
        return
    reads = sorted((r, i, offset) for i, node in enumerate(nodes) for offset, r in node.reads)
    wanted = [(s, p) for s, at in zip(sequences, positions, strict=True) for p in at]
    assert [r for r, _, _ in reads] == list(range(len(wanted)))
    for (_, i, offset), (sequence, position) in zip(reads, wanted, strict=True):
        assert _path(nodes, i)[: nodes[i].start + offset + 1] == sequence[: position + 1]
    assert sum(len(n.tokens) for n in nodes) <= sum(map(len, {tuple(s) for s in sequences}))
    assert all(n.parent < i and n.tokens and n.end - n.start == len(n.tokens) for i, n in enumerate(nodes))
    if limits is not None:
        assert all(n.key is None or n.end <= max(limits) or (i == 0 and head) for i, n in enumerate(nodes))


def _path(nodes: list[Any], i: int) -> list[int]:
    return [*(_path(nodes, nodes[i].parent) if nodes[i].parent >= 0 else []), *nodes[i].tokens]


@functools.cache
def _rating_prompts() -> tuple[JudgePrompt, ...]:
    return tuple(p for p in shipped() if p.kind == "generate" and p.scale)


RATING_WORDS = (
    "[RESULT]", " ", "(", ")", "10", "9", "0", "1", "100", ",", ".", "/", "out of", "\n", "\u0661", "\u00b2", "[", "]",
    "Feedback:", "3.5", "1" * 30, " " * 300, "1," * 200,
)  # fmt: skip


def rating(d: Draw) -> int:
    """Sampled answers: a whole number of the scale that stands in the text, or None."""
    texts = [d.text(10, RATING_WORDS) for _ in range(8)]
    for text in texts:
        for prompt in _rating_prompts():
            got = parse_rating(text, prompt)
            low, high = prompt.scale or (0, 0)
            assert got is None or (type(got) is int and low <= got <= high and str(got) in text), (text, got)
    return len(texts)


TARGETS = {"rows": rows, "labels": labels, "tokens": tokens, "tree": tree, "rating": rating}
