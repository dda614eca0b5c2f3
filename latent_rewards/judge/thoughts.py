"""Thoughts that a policy writes before it answers: told apart from the answer, in text and in messages.

What counts as a thought:

- what stands between a pair of tags (`TAGS`) that opens at the start of a reply or of a line, outside code;
- what stands before a closing tag that nothing opened: the chat template did;
- the channels other than `final` of the harmony format, with its control tokens or with their names left;
- the fields `reasoning_content`, `reasoning` and `thinking` of a message, and content parts of type "thinking" or
  "reasoning".

Tags in running text or in code are material and stay. A thought that opens and never closes leaves no answer. A reply
without any tag is an answer: that a template opened a thought which never closed cannot be seen in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

TAGS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, GLM, Nemotron, Phi-4-reasoning, SmolLM3, MiniMax, Kimi
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    ("◁think▷", "◁/think▷"),  # Kimi-VL
)
UNFINISHED = "the reply ends inside its thought: no answer was given"

_FIELDS = ("reasoning_content", "reasoning", "thinking")
_CODE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,}).*?^[ ]{0,3}\1|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_CHANNEL = re.compile(
    r"<\|channel\|>(?P<name>\w+)(?P<to>[^<]*)(?:<\|constrain\|>\w*)?<\|message\|>"
    r"(?P<text>.*?)(?P<end><\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>|<\|channel\|>)|\Z)",
    re.DOTALL,
)
_BARE_CHANNELS = re.compile(r"\Aanalysis(?P<thought>.*?)assistantfinal(?P<answer>.*)\Z", re.DOTALL)


class Split(NamedTuple):
    """A reply taken apart; `finished` is false where it ends inside a thought."""

    answer: str
    thought: str
    finished: bool = True


def split(text: str, tags: Sequence[tuple[str, str]] = ()) -> Split:
    """A reply as its answer and its thought; the answer is the text itself, bit for bit, where there is no thought.

    Args:
        text: the reply.
        tags: pairs (opening, closing) besides `TAGS`; upper and lower case are the same.
    """
    if "<|channel|>" in text:
        return _harmony(text)
    if bare := _BARE_CHANNELS.match(text):
        return Split(bare["answer"], bare["thought"].strip())
    known = _compiled(tuple(tags))
    if not known.search(text):
        return Split(text, "")
    return _tagged(text, known, {o.lower(): c.lower() for o, c in (*TAGS, *tags)})


@functools.lru_cache(maxsize=64)
def _compiled(tags: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    every = sorted((tag for pair in (*TAGS, *tags) for tag in pair), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, every)), re.IGNORECASE)


def _tagged(text: str, known: re.Pattern[str], closing: Mapping[str, str]) -> Split:
    """One pass over the tags; those in code count inside a thought only. Nested thoughts end with the outermost."""
    answers, thoughts, at, depth, inside, began, shown = [], [], 0, 0, "", 0, -1
    code = _code(text, 0)
    for found in known.finditer(text):
        tag, (first, end) = found[0].lower(), found.span()
        if depth:
            depth += (closing.get(tag) == inside) - (tag == inside)
            if not depth:
                thoughts.append(text[began:first])
                at, code = end, _code(text, end)
        elif any(a <= first < b for a, b in code):
            continue
        elif tag in closing:
            if text[max(text.rfind("\n", 0, first) + 1, at) : first].strip():
                shown = end  # in running text
            else:
                answers.append(text[at:first])
                depth, inside, began = 1, closing[tag], end
        elif not thoughts and (shown < 0 or "\n" in text[shown:first]):  # nothing opened it, so the template did
            thoughts.append(text[:first])
            at, code = end, _code(text, end)
    thoughts += [text[began:]] if depth else []
    thought = "\n\n".join(t.strip() for t in thoughts if t.strip())
    if depth or not thoughts:
        return Split("" if depth else text, thought, finished=not depth)
    return Split("\n\n".join([*(a.strip() for a in answers if a.strip()), text[at:].lstrip()]), thought)


def _code(text: str, start: int) -> list[tuple[int, int]]:
    return [m.span() for m in _CODE.finditer(text, start)]


def _harmony(text: str) -> Split:
    found = list(_CHANNEL.finditer(text))
    answers = [m["text"] for m in found if m["name"] == "final"]
    thought = "\n\n".join(m["text"].strip() for m in found if m["name"] != "final" and m["text"].strip())
    return Split("".join(answers).strip(), thought, finished=bool(answers))


def set_aside(value: object, how: str, tags: Sequence[tuple[str, str]] = ()) -> tuple[object, bool]:
    """A completion, text or messages, as a judge is to see it.

    Args:
        value: text, a message or a list of them; anything else is given back.
        how: "strip" leaves the answers, "only" the thoughts, "keep" everything, with the thoughts of fields in tags.
        tags: see `split`.

    Returns:
        The completion, and whether its last reply is finished.
    """
    if isinstance(value, str):
        if how == "keep":
            return value, True
        found = split(value, tags)
        return (found.answer, found.finished) if how == "strip" else (found.thought, True)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(m, Mapping) for m in value):
        return value, True
    finished, out = True, []
    for message in value:
        if message.get("role") != "assistant":
            out.append(message)
            continue
        made, finished = _message(message, how, tags)
        out.append(made)
    return out, finished or how != "strip"


def _message(message: Mapping[str, object], how: str, tags: Sequence[tuple[str, str]]) -> tuple[object, bool]:
    thoughts = [str(message[field]) for field in _FIELDS if isinstance(message.get(field), str) and message[field]]
    content, parts = message.get("content"), []
    if isinstance(content, list | tuple):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in ("thinking", "reasoning"):
                inner = part.get(kind) or part.get("text")
                thoughts.append(inner if isinstance(inner, str) else _texts(inner))
            else:
                parts.append(part)
        if all(isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts):
            content = "".join(p["text"] for p in parts)
        else:
            content = parts
    found = split(content, tags) if isinstance(content, str) else None
    if not thoughts and (found is None or (not found.thought and found.finished)):
        return (message if how != "only" else {**message, "content": ""}), True
    rest = {k: v for k, v in message.items() if k not in _FIELDS}
    if found is not None and found.thought:
        thoughts = [*thoughts, found.thought] if how != "keep" else thoughts
    if how == "only":
        return {**rest, "content": "\n\n".join(thoughts)}, True
    if how == "keep":
        shown = "".join(f"{TAGS[0][0]}\n{t}\n{TAGS[0][1]}\n\n" for t in thoughts)
        return {**rest, "content": shown + (content or "") if isinstance(content, str | None) else content}, True
    if found is None:
        return {**rest, "content": content}, bool(content or message.get("tool_calls"))
    answered = bool(found.answer.strip() or message.get("tool_calls"))
    return {**rest, "content": found.answer}, found.finished and answered


def _texts(value: object) -> str:
    """Text of the parts that a thinking part holds (Mistral's are lists of text parts)."""
    parts = value if isinstance(value, list | tuple) else []
    return "".join(str(p.get("text", "")) for p in parts if isinstance(p, Mapping))
