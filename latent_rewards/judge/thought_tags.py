"""Thoughts found in the text of a reply: the tags that models write, and the rules by which a tag is one or material.

Sources of the tags: the reasoning parsers of vLLM (`vllm/reasoning/*.py`) and of SGLang, the chat templates of the
models, and OpenAI's harmony format (`docs/format.md` of openai/harmony).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

HARMONY = ("<|channel|>analysis<|message|>", "<|end|>")
THOUGHT_TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, Phi-4-reasoning, GLM, Granite 3.3, Hunyuan, MiniMax, Nemotron, ...
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),  # LongCat
    ("[THINK]", "[/THINK]"),  # Magistral
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThoughts, Sky-T1
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    HARMONY,  # gpt-oss
)  # fmt: skip

_MOST_PASSES, _DEEPEST = 32, 64
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)
_TICKS = re.compile(r"`+|\n")
_NOUN = re.compile(r"[^\S\n]+[a-z]|[.,;:!?)]")  # what follows a tag that is a word of a sentence
_QUOTES = ("\"'\u201c\u2018\u00ab\u300c\u300e", "\"'\u201d\u2019\u00bb\u300d\u300f")
_GAP = re.compile(r"[^\S\n]*(?:\n(?:[^\S\n]*\n)*)?")  # the rest of the line, and blank lines

_MESSAGE = re.compile(
    r"(?:<\|start\|>\w*)?(?P<before>[^<\n]*)<\|channel\|>\s*(?P<channel>\w+)(?P<after>[^<\n]*)(?:<\|constrain\|>[^<\n]*)?"
    r"<\|message\|>(?P<text>.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
_HANDOVER = re.compile(r"<\|end\|>\s*(?=<\|start\|>assistant[^<\n]*<\|channel\|>)")
_SPOKEN = re.compile(r"\s*analysis(?P<thought>.*)assistantfinal(?P<text>.*)", re.DOTALL)


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


class _Mark(NamedTuple):
    """A tag in a text: where it stands, of which pair it is, and which half."""

    start: int
    end: int
    pair: int
    opens: bool


def split_thoughts(text: str, tags: Sequence[tuple[str, str]] = THOUGHT_TAGS, *, opened: bool = False) -> Parts:
    """Thoughts and answer of one reply.

    A tag counts, in any case of letters, outside of code and of quotation marks where models write it: an opening one
    at the start of the reply or of a line; a closing one after it, or without it, for a template may have opened the
    thought, unless it is a word of a sentence ("the tag </think> ends it") or its opening tag was shown before. A
    later opening tag that is never closed counts only where it has its line to itself. All else is material.

    Args:
        text: the reply, special tokens included.
        tags: pairs of opening and closing tag.
        opened: the text is known to begin inside a thought.

    Returns:
        The parts; taking the answer apart again gives the answer.
    """
    pattern = _pattern(tuple(map(tuple, tags)))
    harmony = HARMONY in map(tuple, tags)
    thoughts: list[str] = []
    unfinished = False
    for _ in range(_MOST_PASSES):
        found = (_harmony(text) if harmony else None) or _pass(text, pattern, opened)
        opened = False
        if found is None:
            break
        thoughts += found.thoughts
        text, unfinished = found.answer, unfinished or found.unfinished
    return Parts(tuple(thoughts), text, unfinished)


@functools.lru_cache(maxsize=64)
def _pattern(tags: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """Any tag; group 2 i + 1 is the opening tag of pair i, the next one its closing tag."""
    plain = [pair for pair in tags if pair != HARMONY]
    halves = [half for pair in plain for half in pair]
    if not halves:
        return re.compile(r"(?!)")
    first = "".join(sorted({re.escape(half[0]) for half in halves}))
    return re.compile(f"(?=[{first}])(?:" + "|".join(f"({re.escape(half)})" for half in halves) + ")", re.IGNORECASE)


class _Page:
    """Where code stands in a text, and what surrounds a tag."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fences = _fences(text)
        ticks = [m for m in _TICKS.finditer(text)]
        self.ticks = [m.start() for m in ticks if m[0] != "\n"]
        self.lines = [m.start() for m in ticks if m[0] == "\n"]

    def fenced(self, mark: _Mark) -> bool:
        """Inside a fenced block that is closed."""
        i = bisect.bisect_right(self.fences, (mark.start, len(self.text))) - 1
        return i >= 0 and self.fences[i][0] <= mark.start < self.fences[i][1]

    def line(self, mark: _Mark) -> tuple[int, int]:
        """First and last (exclusive) character of its line."""
        i = bisect.bisect_left(self.lines, mark.start)
        end = bisect.bisect_left(self.lines, mark.end)
        return (self.lines[i - 1] + 1 if i else 0), (self.lines[end] if end < len(self.lines) else len(self.text))

    def shown(self, mark: _Mark) -> bool:
        """Between backticks or quotation marks."""
        start, end = self.line(mark)
        before = bisect.bisect_left(self.ticks, mark.start) - bisect.bisect_left(self.ticks, start)
        after = bisect.bisect_left(self.ticks, end) - bisect.bisect_left(self.ticks, mark.end)
        if before % 2 and after:
            return True
        around = self.text[mark.start - 1 : mark.start], self.text[mark.end : mark.end + 1]
        return all(c and c in marks for c, marks in zip(around, _QUOTES, strict=True))

    def noun(self, mark: _Mark) -> bool:
        """A word of a sentence."""
        start, _ = self.line(mark)
        gap = self.text[mark.start - 1 : mark.start] in (" ", "\t")
        return gap and mark.start - start > 1 and bool(_NOUN.match(self.text, mark.end))

    def alone(self, mark: _Mark) -> bool:
        """On a line of its own."""
        start, end = self.line(mark)
        return not self.text[start : mark.start].strip() and not self.text[mark.end : end].strip()


def _fences(text: str) -> list[tuple[int, int]]:
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


def _pass(text: str, pattern: re.Pattern[str], opened: bool) -> Parts | None:
    """All thoughts that the tags of a text show, from left to right; None where there are none."""
    found = [(m, (m.lastindex or 1) - 1) for m in pattern.finditer(text)]
    if not found and not opened:
        return None
    page = _Page(text)
    marks = [m for m in (_Mark(m.start(), m.end(), half // 2, half % 2 == 0) for m, half in found) if not page.shown(m)]
    ends = _Ends(page, marks)
    thoughts: list[str] = []
    kept: list[str] = []
    at, shown = 0, False  # where the rest begins; whether an opening tag of the rest is material
    if opened and not (marks and marks[0].opens and not text[: marks[0].start].strip()):
        first = ends.first()
        if first is None:
            return Parts((text,), "", True)
        thoughts, at = [text[: first.start]], _over(text, first)
    for i, mark in enumerate(marks):
        if mark.start < at or page.fenced(mark):
            continue
        if not mark.opens:
            if ends.good(mark) and (page.alone(mark) or not shown):
                thoughts.append("".join(kept) + text[at : mark.start])
                kept, at, shown = [], _over(text, mark), False
            continue
        blank = not text[at : mark.start].strip()
        leads = blank and not kept
        begins = leads or (blank and bool(thoughts)) or text[mark.start - 1 : mark.start] == "\n"
        end = ends.of(i) if begins else None
        if not begins or (end is None and not leads and not page.alone(mark)):
            shown = True
            continue
        if not leads:
            kept.append(text[at : mark.start])
        if end is None:
            return Parts((*thoughts, text[mark.end :]), "".join(kept).rstrip(), True)
        thoughts.append(text[mark.end : end.start])
        at = _over(text, end)
    if not thoughts:
        return None
    rest = text[at:]
    return Parts(tuple(thoughts), "".join(kept) + rest if rest else "".join(kept).rstrip())


def _over(text: str, mark: _Mark) -> int:
    """Where a text goes on after a thought: past the rest of the line, and past blank lines."""
    gap = _GAP.match(text, mark.end)
    return gap.end() if gap else mark.end


class _Ends:
    """The closing tags of a text: which of them ends a thought that begins at some opening tag."""

    def __init__(self, page: _Page, marks: Sequence[_Mark]) -> None:
        self.page, self.marks = page, marks
        self._good: dict[_Mark, bool] = {}
        self.closing: dict[int, list[_Mark]] = {}
        self.sure: dict[int, list[_Mark]] = {}
        for mark in marks:
            if not mark.opens:
                self.closing.setdefault(mark.pair, []).append(mark)
                if self.good(mark):
                    self.sure.setdefault(mark.pair, []).append(mark)

    def good(self, mark: _Mark) -> bool:
        """Not in code, and no word of a sentence."""
        if mark not in self._good:
            self._good[mark] = not self.page.fenced(mark) and not self.page.noun(mark)
        return self._good[mark]

    def first(self) -> _Mark | None:
        """The first one of any pair, those that are surely one before the others."""
        for found in (self.sure, self.closing):
            if found:
                return min(marks[0] for marks in found.values())
        return None

    def of(self, i: int) -> _Mark | None:
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


def _harmony(text: str) -> Parts | None:
    """Channels of gpt-oss: "analysis" is thought, "final" and "commentary" are said; None where there are none."""
    if text.lstrip()[:8] == "analysis" and (plain := _SPOKEN.match(text)):  # decoded without special tokens
        return Parts((plain["thought"],), plain["text"])
    if "<|channel|>" not in text:
        return None
    thoughts, said, at = [], [], len(text) - len(text.lstrip())
    if not _MESSAGE.match(text, at):
        fences = _fences(text)
        over = (m for m in _HANDOVER.finditer(text) if not any(a <= m.start() < b for a, b in fences))
        head = next(over, None)
        if head is None:
            return None
        thoughts, at = [text[: head.start()]], head.end()
    last = "analysis"
    for m in _MESSAGE.finditer(text, at):
        said.append(text[at : m.start()])
        at, last = m.end(), m["channel"]
        if last == "analysis" and "to=" not in m["before"] + m["after"]:
            thoughts.append(m["text"])
            continue
        to = next((w for w in f"{m['before']} {m['after']}".split() if w.startswith("to=")), "")
        said.append(f"{to} {m['text']}" if to else m["text"])
        last = "said"
    said.append(text[at:])
    answer = "\n\n".join(s for s in said if s.strip())
    return Parts(tuple(thoughts), answer, last == "analysis" and not text[at:].strip())
