"""A copy of a fast tokenizer that has never heard of some of its added tokens."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # what stands for a byte of a character that the vocabulary lacks


class Variant(NamedTuple):
    """Where the text stands: tokenizers treat the first stretch of a text, and those after a control token, apart.

    Attributes:
        first: nothing comes before it.
        joined: the normaliser sees it together with the control token before it.
    """

    first: bool
    joined: bool


def bare_copy(
    serialised: str, without: set[str], variant: Variant, *, pieces: bool = True
) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer without the added tokens of these texts.

    Args:
        serialised: tokenizer.json.
        without: texts of the added tokens to forget.
        variant: where the texts that it will read stand.
        pieces: forget them in the model's own vocabulary too.

    Returns:
        The copy, and the true ids of those of its tokens that got another one.
    """
    from tokenizers import Tokenizer

    raw = json.loads(serialised) | {"post_processor": None, "truncation": None, "padding": None}
    kept = [t for t in raw["added_tokens"] if t["content"] not in without]
    raw["added_tokens"] = kept
    if pieces:
        raw["model"] = _without(raw["model"], {t for t in without if not BYTE.fullmatch(t)})
    if not variant.first:
        for step in _steps(raw["pre_tokenizer"], "pretokenizers"):
            if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
    if variant.joined and raw["normalizer"]:
        left = [s for s in _steps(raw["normalizer"], "normalizers") if s["type"] != "Prepend"]
        raw["normalizer"] = {"type": "Sequence", "normalizers": left}
    copy = Tokenizer.from_str(json.dumps(raw))
    ids = ((copy.token_to_id(t["content"]), int(t["id"])) for t in kept)
    return copy, {mine: true for mine, true in ids if mine is not None and mine != true}


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, nested sequences opened."""
    if part is None:
        return []
    return [s for inner in part[key] for s in _steps(inner, key)] if part["type"] == "Sequence" else [part]


def _without(model: dict[str, Any], words: set[str]) -> dict[str, Any]:
    """A model whose vocabulary writes some entries with characters that no text should hold; ids stay."""
    if isinstance(model["vocab"], list):  # Unigram: [piece, score]
        return model | {
            "vocab": [[_hidden(i) if p in words else p, score] for i, (p, score) in enumerate(model["vocab"])]
        }
    out = model | {"vocab": {_hidden(i) if p in words else p: i for p, i in model["vocab"].items()}}
    if model.get("unk_token") in words and model["unk_token"] in model["vocab"]:
        out["unk_token"] = _hidden(model["vocab"][model["unk_token"]])
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        out["merges"] = [[a, b] for a, b in pairs if words.isdisjoint((a, b, a + b[prefix:]))]
    return out


def _hidden(token: int) -> str:
    return f"\ufdd0{token}\ufdd1"
