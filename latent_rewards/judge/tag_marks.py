"""Tags in a text: where they stand, what surrounds them, which of them belong together."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

_DEEPEST = 64
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)
_TICKS = re.compile(r"`+|\n")
_NOUN = re.compile(r"[^\S\n]+[a-z]|[.,;:!?)]")  # what follows a tag that is a word of a sentence
_QUOTES = ("\"'\u201c\u2018\u00ab\u300c\u300e", "\"'\u201d\u2019\u00bb\u300d\u300f")


class Parts(NamedTuple):
    """A reply taken apart.

    Attributes:
        thoughts: what was thought, in order, without its tags.
        answer: the rest; the text itself, to the last character, where nothing was thought.
        unfinished: the reply ends inside a thought.
    """

    thoughts: tuple[str, ...]
    answer: str
    unfinished: bool = False


class Mark(NamedTuple):
    """A tag in a text: where it stands, of which pair it is, and which half."""

    start: int
    end: int
    pair: int
    opens: bool


class Page:
    """Where code stands in a text, and what surrounds a tag."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fences = fences(text)
        ticks = [m for m in _TICKS.finditer(text)]
        self.ticks = [m.start() for m in ticks if m[0] != "\n"]
        self.lines = [m.start() for m in ticks if m[0] == "\n"]

    def fenced(self, mark: Mark) -> bool:
        """Inside a fenced block that is closed."""
        i = bisect.bisect_right(self.fences, (mark.start, len(self.text))) - 1
        return i >= 0 and self.fences[i][0] <= mark.start < self.fences[i][1]

    def line(self, mark: Mark) -> tuple[int, int]:
        """First and last (exclusive) character of its line."""
        i = bisect.bisect_left(self.lines, mark.start)
        end = bisect.bisect_left(self.lines, mark.end)
        return (self.lines[i - 1] + 1 if i else 0), (self.lines[end] if end < len(self.lines) else len(self.text))

    def shown(self, mark: Mark) -> bool:
        """Between backticks or quotation marks."""
        start, end = self.line(mark)
        before = bisect.bisect_left(self.ticks, mark.start) - bisect.bisect_left(self.ticks, start)
        after = bisect.bisect_left(self.ticks, end) - bisect.bisect_left(self.ticks, mark.end)
        if before % 2 and after:
            return True
        around = self.text[mark.start - 1 : mark.start], self.text[mark.end : mark.end + 1]
        return all(c and c in marks for c, marks in zip(around, _QUOTES, strict=True))

    def noun(self, mark: Mark) -> bool:
        """A word of a sentence."""
        start, _ = self.line(mark)
        gap = self.text[mark.start - 1 : mark.start] in (" ", "\t")
        return gap and mark.start - start > 1 and bool(_NOUN.match(self.text, mark.end))

    def alone(self, mark: Mark) -> bool:
        """On a line of its own."""
        start, end = self.line(mark)
        return not self.text[start : mark.start].strip() and not self.text[mark.end : end].strip()


def fences(text: str) -> list[tuple[int, int]]:
    """First and last (exclusive) character of every fenced block that is closed."""
    out: list[tuple[int, int]] = []
    start, fence = -1, ""
    for m in _FENCE.finditer(text):
        if not fence:
            if not (m[1][0] == "`" and "`" in m[2]):
                start, fence = m.start(), m[1]
        elif m[1].startswith(fence) and not m[2].strip():
            out.append((start, m.end()))
            fence = ""
    return out


class Ends:
    """The closing tags of a text: which of them ends a thought that begins at some opening tag."""

    def __init__(self, page: Page, marks: Sequence[Mark]) -> None:
        self.page, self.marks = page, marks
        self._good: dict[Mark, bool] = {}
        self.closing: dict[int, list[Mark]] = {}
        self.sure: dict[int, list[Mark]] = {}
        for mark in marks:
            if not mark.opens:
                self.closing.setdefault(mark.pair, []).append(mark)
                if self.good(mark):
                    self.sure.setdefault(mark.pair, []).append(mark)

    def good(self, mark: Mark) -> bool:
        """Not in code, and no word of a sentence."""
        if mark not in self._good:
            self._good[mark] = not self.page.fenced(mark) and not self.page.noun(mark)
        return self._good[mark]

    def first(self) -> Mark | None:
        """The first one of any pair, those that are surely one before the others."""
        for found in (self.sure, self.closing):
            if found:
                return min(marks[0] for marks in found.values())
        return None

    def of(self, i: int) -> Mark | None:
        """The one that closes the thought which mark i opens, nested ones closed before; None where there is none."""
        pair, depth = self.marks[i].pair, 0
        sure, every = self.sure.get(pair, []), self.closing.get(pair, [])
        if sure and sure[-1] > self.marks[i]:
            for mark in itertools.islice(self.marks, i, i + _DEEPEST):
                if mark.pair == pair and (mark.opens or self.good(mark)):
                    depth += 1 if mark.opens else -1
                    if not depth:
                        return mark
        for found in (sure, every):
            at = bisect.bisect_left(found, self.marks[i])
            if at < len(found):
                return found[at]
        return None
