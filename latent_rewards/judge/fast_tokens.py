"""Token ids from a tokenizer of the `tokenizers` library, whose offsets tell what each token stands for."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer

from latent_rewards.judge.bare import Variant, bare_copy
from latent_rewards.judge.tokens import Control, Piece, Spelling, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = Callable[[int], tuple[int, int]]  # first and last (exclusive) character of a token of the text
_CHUNK = 256  # texts the backend holds at a time


class FastSpelling(Spelling):
    """For fast tokenizers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._raw = tokenizer.backend_tokenizer.to_str()
        raw = json.loads(self._raw) | {"post_processor": None, "truncation": None, "padding": None}
        tokens = {int(t["id"]): t for t in raw["added_tokens"]}
        super().__init__(tokenizer, {i: str(t["content"]) for i, t in tokens.items()})
        self._normalized = {i for i, t in tokens.items() if t["normalized"]}
        self._whole = Tokenizer.from_str(json.dumps(raw))
        self._bare: dict[tuple[Variant, bool], tuple[Tokenizer, dict[int, int]]] = {}
        special = {i for i, t in tokens.items() if t["special"]} | set(tokenizer.all_special_ids)
        special |= {i for i, t in self._added.items() if t in (getattr(tokenizer, "chat_control_tokens", None) or ())}
        greedy = {i for i, t in tokens.items() if t["lstrip"] or t["rstrip"]}
        self.control = {i: t for i, t in self.control.items() if not self._is_plain(i, t, i in special, i in greedy)}

    def _is_plain(self, token: int, text: str, special: bool, greedy: bool) -> bool:
        """Whether an added token is an ordinary word or letter, and no harm in anybody's text.

        One that loses characters, since it takes the space around it along (`greedy`) or decodes to something else than
        itself (letters of the byte alphabet, as in DeepSeek's vocabularies), is spelt otherwise where the vocabulary
        can. A special one is ordinary if the vocabulary holds it anyway, such as "!" for padding.
        """
        word = text.replace("\u2581", " ").strip()
        if len(text) > 1 and not all(c.isalnum() or c.isspace() for c in word):
            return False
        loses = greedy or self.decode([token]).strip() != word
        (alone,) = self.bare([text]) if special or loses else ([],)
        if special:
            return alone == [token]
        return not loses or self.decode(alone).strip() != word

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Spelling`."""
        return [e.ids for e in self._whole.encode_batch(list(texts), add_special_tokens=False)]

    def bare(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Spelling`."""
        return [ids for ids, _ in self._plain(list(texts), Variant(True, False), frozenset(self._added), pieces=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Spelling`."""
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def squash(self, text: str) -> str:
        """See `Spelling`; after the tokenizer's normaliser, which may fold letters."""
        normalizer = self._whole.normalizer
        return super().squash(text if normalizer is None else normalizer.normalize_str(text))

    def find(self, text: str) -> list[Control]:
        """See `Spelling`."""
        (found,) = self._whole.encode_batch([text], add_special_tokens=False)
        return [
            Control(i, *span, i in self._normalized)
            for i, span in zip(found.ids, found.offsets, strict=True)
            if i in self.control and i not in self._fallback
        ]

    def encode(self, rows: Sequence[Sequence[Piece]], borders: Sequence[Sequence[int]]) -> list[Tokens]:
        """See `Spelling`."""
        out: list[Tokens] = []
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            texts = ["".join(p.text for p in row) for row in part]
            found = self._whole.encode_batch(texts, add_special_tokens=False)
            for row, text, encoding, at in zip(part, texts, found, borders[first : first + _CHUNK], strict=True):
                ids, problem = encoding.ids, None
                span = cast(Span, encoding.token_to_chars)
                if self._foreign(row, text, ids, span):
                    read = ids
                    ids, offsets = self._apart(row)
                    span = offsets.__getitem__
                    problem = self.complaint(ids, read, [c.id for p in row if p.ours for c in self.controls(p.text)])
                out.append(Tokens(ids, [_where(len(ids), span, b) for b in at], problem))
        return out

    def _foreign(self, row: Sequence[Piece], text: str, ids: list[int], span: Span) -> bool:
        """Whether a control token comes out of text that is not ours, or one of ours does not come out."""
        ends = list(itertools.accumulate(len(p.text) for p in row))
        mine = []
        for at, i in enumerate(ids):
            if i not in self.control:
                continue
            start, end = span(at)
            word = text[start:end].strip()
            if i in self._fallback and word.lower() != self.control[i].lower():
                continue
            start += len(text[start:end]) - len(text[start:end].lstrip())
            piece = bisect.bisect_right(ends, start)
            if not row[piece].ours or start + len(word) > ends[piece]:
                return True
            mine.append(i)
        return mine != [c.id for p in row if p.ours for c in self.controls(p.text)]

    def _apart(self, row: Sequence[Piece]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets with our control tokens alone."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for begin, part in self.stretches(row):
            if isinstance(part, Control):
                ids.append(part.id)
                offsets.append((begin, begin + part.end - part.start))
                continue
            ((more, spans),) = self._plain([part[1]], part[0], frozenset(self.control))
            ids += more
            offsets += [(begin + s, begin + e) for s, e in spans]
        return ids, offsets

    def _plain(
        self, texts: list[str], variant: Variant, without: frozenset[int], *, pieces: bool = True
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and offsets of texts, read by a copy that lacks some added tokens."""
        key = variant, pieces
        if key not in self._bare:
            self._bare[key] = bare_copy(self._raw, {self._added[i] for i in without}, variant, pieces=pieces)
        copy, renamed = self._bare[key]
        found = copy.encode_batch(texts, add_special_tokens=False)
        return [([renamed.get(i, i) for i in e.ids], e.offsets) for e in found]


def _where(n: int, span: Span, border: int) -> tuple[int, int]:
    """Tokens, of n, that end at or before a character, and the first token that starts at it or later."""
    before = bisect.bisect_right(range(n), border, key=lambda i: span(i)[1])
    return before, bisect.bisect_left(range(n), border, before, key=lambda i: span(i)[0])
