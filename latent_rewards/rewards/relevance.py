"""Whether a completion speaks of what was asked, told from its words alone: no judge is read."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.judge.prompts import to_text

FEATURES = (
    "share of the prompt's words said", "share of the words that are the prompt's", "log words shared", "any shared",
    "share of the prompt's 4-grams said", "share of the 4-grams that are the prompt's", "log words said",
    "no end mark", "log words of the prompt",
)  # fmt: skip
_WEIGHTS = Path(__file__).parents[1] / "shipped" / "relevance.json"
COPIED = 5
_WORD = re.compile(r"[^\W_]+")
_END = re.compile(r"[^\w\s,]\s*\Z")
_STOP = frozenset(
    "the a an and or of to in on for with is are was were be been it its this that these those i you he she they we my "
    "your his her their our me him them us as at by from not no do does did have has had can could would should will "
    "may might must what which who whom when where why how there here then than so if but into about also any some all "
    "more most such other one out up just like get make yours please following given".split()
)


def features(prompt: Any, completion: Any) -> np.ndarray:
    """(F,) what `FEATURES` names.

    Words are runs of letters or digits of any script, cut to five characters so that "prime" meets "primes"; the
    commonest English ones do not count. Nor do passages copied from the prompt (`without_copies`).

    Args:
        prompt: text or messages.
        completion: text or messages.
    """
    asked = to_text(prompt)
    said = without_copies(asked, to_text(completion))
    own, other = _content(asked), _content(said)
    shared = len(own & other)
    grams, said_grams = _grams(asked), _grams(said)
    both = len(grams & said_grams)
    return np.array([
        shared / max(1, len(own)), shared / max(1, len(other)), np.log1p(shared), float(shared > 0),
        both / max(1, len(grams)), both / max(1, len(said_grams)), np.log1p(len(_words(said))),
        float(not _END.search(said)), np.log1p(len(own)),
    ])  # fmt: skip


def without_copies(asked: str, said: str) -> str:
    """The text without every run of `COPIED` words or more, in order, that stands in the prompt: who repeats it has
    said nothing.
    """
    runs = _runs([m.group().lower() for m in _WORD.finditer(asked)])
    words = list(_WORD.finditer(said))
    lower, copied = [m.group().lower() for m in words], np.zeros(len(words), dtype=bool)
    for i in range(len(words) - COPIED + 1):
        if tuple(lower[i : i + COPIED]) in runs:
            copied[i : i + COPIED] = True
    if not copied.any():
        return said
    ends = [*(m.start() for m in words[1:]), len(said)]
    kept = [said[m.start() : end] for m, end, out in zip(words, ends, copied, strict=True) if not out]
    return said[: words[0].start()] + "".join(kept)


def _runs(words: list[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(words[i : i + COPIED]) for i in range(len(words) - COPIED + 1))


def log_odds(prompt: Any, completion: Any) -> float:
    """Log-odds that the completion is an answer to the prompt and not to another one, cut off, or a mere phrase.

    A logistic regression on `features`, fitted by `python -m benchmarks.attack_gate`. It knows nothing of truth, and
    who repeats the prompt's words pleases it: use it to take points away (`GuardedReward`), never to give any.

    Args:
        prompt: text or messages.
        completion: text or messages.
    """
    mean, scale, weights, bias = _weights()
    return float((features(prompt, completion) - mean) / scale @ weights + bias)


def weights_hash() -> str:
    """Hash of the fitted weights that `log_odds` reads."""
    return hashlib.sha256(_WEIGHTS.read_bytes()).hexdigest()[:16]


@functools.cache
def _weights() -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    kept = json.loads(_WEIGHTS.read_text(encoding="utf-8"))
    if tuple(kept["features"]) != FEATURES:
        raise ValueError(f"{_WEIGHTS} was made for other features; run python -m benchmarks.attack_gate --ship")
    mean, scale, weights = (np.array(kept[k]) for k in ("mean", "scale", "weights"))
    return mean, scale, weights, float(kept["bias"])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _content(text: str) -> set[str]:
    return {w[:5] for w in _words(text) if w not in _STOP and (len(w) > 2 or not w.isascii() or w.isdigit())}


def _grams(text: str) -> set[str]:
    flat = " ".join(_words(text))
    return {flat[i : i + 4] for i in range(len(flat) - 3)}
