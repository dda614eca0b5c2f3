"""Token ids from a tokenizer written in Python, which gives no offsets."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latent_rewards.judge.tokens import Control, Piece, Spelling, Tokens, common

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SlowSpelling(Spelling):
    """For slow tokenizers: a border lies where the ids of the text before it end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
        super().__init__(tokenizer, {int(i): str(getattr(t, "content", t)) for i, t in added.items()})
        self._at = {t: i for i, t in self.control.items()}
        longest = sorted(self._at, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Spelling`."""
        return [list(self.tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"]) for t in texts]

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Spelling`; what the vocabulary itself takes for a control token is cut in two, in a line of its own."""
        return [self._bare(t) for t in texts]

    def _bare(self, text: str) -> list[int]:
        ids = self._split(text)
        if not any(i in self.control and i not in self._fallback for i in ids):
            return ids
        cuts = [0, *(m.start() + 1 for m in re.finditer(f"(?={self._pattern.pattern})", text)), len(text)]
        line, out = self._split("\n"), []
        for i, j in itertools.pairwise(cuts):
            after = self._split("\n" + text[i:j])
            out += after[len(line) :] if i and after[: len(line)] == line else self._split(text[i:j])
        return out

    def _split(self, text: str) -> list[int]:
        words = self.tokenizer.tokenize(text, split_special_tokens=True)
        ids = self.tokenizer.convert_tokens_to_ids(words)
        return [ids] if isinstance(ids, int) else list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Spelling`."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def find(self, text: str) -> list[Control]:
        """See `Spelling`."""
        return [Control(self._at[m[0]], m.start(), m.end(), False) for m in self._pattern.finditer(text)]

    def encode(self, rows: Sequence[Sequence[Piece]], borders: Sequence[Sequence[int]]) -> list[Tokens]:
        """See `Spelling`; a token across a border counts as after it."""
        return [self._encode(row, at) for row, at in zip(rows, borders, strict=True)]

    def _encode(self, row: Sequence[Piece], borders: Sequence[int]) -> Tokens:
        ids, problem = self._ids(row)
        at = {b: common(ids, self._ids(_cut(row, b))[0]) for b in set(borders)}
        return Tokens(ids, [(at[b], at[b]) for b in borders], problem)

    def _ids(self, row: Sequence[Piece]) -> tuple[list[int], str | None]:
        text = "".join(p.text for p in row)
        (ids,) = self.whole([text])
        mine = [c.id for p in row if p.ours for c in self.controls(p.text)]
        if [c.id for c in self.find(text)] == mine and not any(self._pattern.search(p.text) for p in row if not p.ours):
            return ids, None
        out: list[int] = []
        for _, part in self.stretches(row):
            out += [part.id] if isinstance(part, Control) else self.bare([part[1]])[0]
        return out, self.complaint(out, ids, mine)


def _cut(row: Sequence[Piece], end: int) -> list[Piece]:
    """The pieces up to a character."""
    out = []
    for text, ours in row:
        out.append(Piece(text[: max(0, end)], ours))
        end -= len(text)
    return out
