"""Thoughts found in the text of a reply: the tags that models write, and the rules by which a tag is one or material.

Sources of the tags: the reasoning parsers of vLLM (`vllm/reasoning/*.py`) and of SGLang, the chat templates of the
models, and OpenAI's harmony format (`docs/format.md` of openai/harmony).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from latent_rewards.judge.harmony import HARMONY, split_channels
from latent_rewards.judge.tag_marks import Ends, Mark, Page, Parts

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

_MOST_PASSES = 32
_GAP = re.compile(r"[^\S\n]*(?:\n(?:[^\S\n]*\n)*)?")  # the rest of the line, and blank lines


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
        found = (split_channels(text) if harmony else None) or _pass(text, pattern, opened)
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


def _pass(text: str, pattern: re.Pattern[str], opened: bool) -> Parts | None:
    """All thoughts that the tags of a text show, from left to right; None where there are none."""
    found = [(m, (m.lastindex or 1) - 1) for m in pattern.finditer(text)]
    if not found and not opened:
        return None
    page = Page(text)
    marks = [m for m in (Mark(m.start(), m.end(), half // 2, half % 2 == 0) for m, half in found) if not page.shown(m)]
    ends = Ends(page, marks)
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


def _over(text: str, mark: Mark) -> int:
    """Where a text goes on after a thought: past the rest of the line, and past blank lines."""
    gap = _GAP.match(text, mark.end)
    return gap.end() if gap else mark.end
