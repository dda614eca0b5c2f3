"""Token ids of a text that is partly ours and partly anybody's: the tokenizer's own ids, and no control token but ours.

A text is tokenised whole, as `apply_chat_template(..., tokenize=True)` does it. Where somebody else's words spell a
control token, the text is cut at our control tokens, and what lies between is read by a copy of the tokenizer that has
never heard of control tokens; its characters must come back.
"""

from __future__ import annotations

import abc
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from latent_rewards.judge.bare import BYTE, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Piece(NamedTuple):
    """A stretch of a text; `ours` may hold control tokens."""

    text: str
    ours: bool


class Control(NamedTuple):
    """A control token where it stands in one of our pieces; `joined`: found after the normaliser has run."""

    id: int
    start: int
    end: int
    joined: bool


class Tokens(NamedTuple):
    """Ids of a text; for each border asked for, the tokens that end before it and the first one that starts after it.

    `problem` says why the text cannot be read; its ids are not to be used then.
    """

    ids: list[int]
    borders: list[tuple[int, int]]
    problem: str | None = None


class Spelling(abc.ABC):
    """Turns pieces of text into ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
        added: its added tokens, special or not, by id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, added: Mapping[int, str]) -> None:
        self.tokenizer = tokenizer
        self._added = {**added, **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))}
        self.control = {i: t for i, t in self._added.items() if t.replace("\u2581", " ").strip()}
        # What the model falls back to for characters it does not know; some vocabularies list that as control tokens.
        self._bytes = {i for i, t in self._added.items() if BYTE.fullmatch(t)}
        self._fallback = self._bytes | {tokenizer.unk_token_id}
        self._known: dict[str, list[Control]] = {}

    @abc.abstractmethod
    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as the tokenizer reads them, control tokens included, no BOS."""

    @abc.abstractmethod
    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts, tokenised by the model's own vocabulary, without added tokens."""

    @abc.abstractmethod
    def encode(self, rows: Sequence[Sequence[Piece]], borders: Sequence[Sequence[int]]) -> list[Tokens]:
        """Ids of texts given in pieces, and where the borders (characters of the text) lie in them."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that hold no added token."""

    @abc.abstractmethod
    def find(self, text: str) -> list[Control]:
        """Control tokens that the tokenizer sees in a text of ours."""

    def controls(self, text: str) -> list[Control]:
        """As `find`, remembered."""
        if text not in self._known:
            if len(self._known) >= 4096:
                self._known.clear()
            self._known[text] = self.find(text)
        return self._known[text]

    def stretches(self, row: Sequence[Piece]) -> list[tuple[int, Control | tuple[Variant, str]]]:
        """A text cut at our control tokens alone: (first character, control token or text between two of them)."""
        out: list[tuple[int, Control | tuple[Variant, str]]] = []
        buffer, begin, at, joined = "", 0, 0, False
        for text, ours in row:
            done = 0
            for token in self.controls(text) if ours else ():
                buffer += text[done : token.start]
                if buffer:
                    out.append((begin, (Variant(begin == 0, joined), buffer)))
                out.append((at + token.start, token))
                buffer, begin, done, joined = "", at + token.end, token.end, token.joined
            buffer, at = buffer + text[done:], at + len(text)
        return [*out, (begin, (Variant(begin == 0, joined), buffer))] if buffer else out

    def complaint(self, ids: Sequence[int], read: Sequence[int], mine: Sequence[int]) -> str | None:
        """Why ids do not stand for the text whose plain tokenisation is `read`: lost characters, foreign control."""
        found = [i for i in ids if i in self.control and i not in self._fallback]
        if found != list(mine):
            name = next((self.control[i] for i in (Counter(found) - Counter(mine))), "of ours")
            return (
                f"the text spells the control token {name!r}, which this judge's tokenizer cannot write as plain text"
            )
        if self.squash(self.read_back(ids)) == self.squash(self.read_back(read)):
            return None
        return "the text spells a control token, and the vocabulary of this judge's tokenizer lacks its characters"

    def read_back(self, ids: Sequence[int]) -> str:
        """Text of ids; an added token stands for what it is written with, whatever the decoder makes of it."""
        out = []
        for added, run in itertools.groupby(ids, key=lambda i: i in self._added and i not in self._bytes):
            tokens = list(run)
            out.append("".join(self._added[i] for i in tokens) if added else self.decode(tokens))
        return "".join(out)

    def squash(self, text: str) -> str:
        """A text without white space, which tokenizers add and drop where pieces meet."""
        return re.sub("[\\s\u2581]+", "", text)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two lists of ids."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
