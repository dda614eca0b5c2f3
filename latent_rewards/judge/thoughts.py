"""What of a policy's thinking the judge reads: set aside, shown, or shown alone; and replies that end inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from latent_rewards.judge.thought_tags import THOUGHT_TAGS, split_thoughts

Reasoning = Literal["strip", "keep", "only"]
MODES: tuple[Reasoning, ...] = ("strip", "keep", "only")

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold a thought: DeepSeek's and vLLM's, OpenRouter's and vLLM's, Ollama's and TRL's."""
THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")  # no set: what clients send may have no hash
"""Types of content parts that hold a thought: Anthropic's and Mistral's, and others'."""
SETTLED = "thoughts_settled"
"""Field of the assistant's messages that have been treated already, and must not be once more."""

UNFINISHED = (
    "the reply ends inside its thought: no answer was given; let the policy write more tokens, or set unfinished to a "
    "floor, or to 'keep' to judge the text as it is"
)
NO_THOUGHT = "the reply holds no thought, which is all that reasoning='only' judges"


class Treatment(NamedTuple):
    """How thoughts are treated; the fields of `JudgePrompt` of these names."""

    reasoning: Reasoning = "strip"
    unfinished: Literal["none", "keep"] = "none"
    opened: bool = False
    tags: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        """Raise ValueError for values that mean nothing."""
        if self.reasoning not in MODES:
            raise ValueError(f"reasoning must be one of {list(MODES)}, got {self.reasoning!r}")
        if self.unfinished not in ("none", "keep"):
            raise ValueError(f"unfinished must be 'none' or 'keep', got {self.unfinished!r}")
        if not isinstance(self.opened, bool):
            raise ValueError(f"opened must be true or false, got {self.opened!r}")
        for pair in self.tags:
            if len(pair) != 2 or not all(isinstance(tag, str) and tag.strip() for tag in pair) or pair[0] == pair[1]:
                raise ValueError(f"thought_tags must be pairs of an opening and a closing tag, got {pair!r}")


class Reply(NamedTuple):
    """A completion as the judge is to read it.

    Attributes:
        shown: text or messages; the value itself where it holds no thought.
        answer: what the last of the assistant's messages says, without thought; the whole text of a single reply.
        unfinished: it ends inside a thought.
        problem: why it must not be scored, or None.
    """

    shown: object
    answer: object
    unfinished: bool
    problem: str | None


class _Said(NamedTuple):
    """One message of the assistant: its thoughts, what else it says, and its content with the thoughts in it.

    `changed`: the message holds thoughts, or marks that belong to them.
    """

    thoughts: tuple[str, ...]
    answer: object
    unfinished: bool
    whole: object
    changed: bool


def read_reply(value: object, how: Treatment) -> Reply:
    """A completion with its thoughts treated as wanted.

    Args:
        value: text, which is one reply of the assistant, or messages, of which the assistant's are looked at; others,
            and what is neither, are given back as they are.
        how: the treatment.
    """
    messages = _messages(value)
    if messages is None:
        if not isinstance(value, str):
            return Reply(value, value, False, None)
        parts = split_thoughts(value, (*THOUGHT_TAGS, *how.tags), opened=how.opened)
        one = _Said(parts.thoughts, parts.answer, parts.unfinished, value, parts.answer != value)
        return _reply(value, [one], how, lambda: _shown(one, how))
    own = [m for m in messages if m["role"] == "assistant"]
    if own and all(m.get(SETTLED) for m in own):
        return Reply(value, _plain(own[-1].get("content")), False, None)
    said = [_said(m, how) if m["role"] == "assistant" else None for m in messages]
    spoken = [s for s in said if s is not None] or [_Said((), "", False, "", False)]
    return _reply(value, spoken, how, lambda: _rewritten(value, messages, said, how))


def read_prompt(value: object, how: Treatment) -> object:
    """A prompt whose earlier turns of the assistant are treated so, too; plain text and all other turns stay."""
    messages = _messages(value)
    if messages is None:
        return value
    how = how._replace(reasoning="keep" if how.reasoning == "keep" else "strip", unfinished="none")
    said = [_said(m, how) if m["role"] == "assistant" else None for m in messages]
    return _rewritten(value, messages, said, how)


def settled(value: object, how: Treatment) -> object:
    """What `read_reply` showed, marked where it would be read otherwise a second time."""
    if how.reasoning != "only" and not how.opened:
        return value
    messages = _messages(value) or [{"role": "assistant", "content": value}]
    return [{**m, SETTLED: True} if m["role"] == "assistant" else m for m in messages]


def hidden_chars(value: object) -> int:
    """Characters of the thoughts in the fields and parts of messages, which their content does not count."""
    return sum(len(t) for m in _messages(value) or [] for t in (*_fields(m), *_thinking_parts(m.get("content"))))


def has_thought(message: Mapping[str, object]) -> bool:
    """Whether a message holds a thought beside its text."""
    return bool(_fields(message)) or bool(_thinking_parts(message.get("content")))


def _reply(value: object, said: list[_Said], how: Treatment, shown: Callable[[], object]) -> Reply:
    thoughts, last = [t for s in said for t in s.thoughts], said[-1]
    kept = last.unfinished and how.unfinished == "keep"
    answer = last.whole if kept else last.answer
    problem = UNFINISHED if last.unfinished and not kept else None
    if how.reasoning == "only" and not problem:
        problem = None if thoughts else NO_THOUGHT
        return Reply("\n\n".join(thoughts) if thoughts else value, answer, last.unfinished, problem)
    return Reply(value if problem else shown(), answer, last.unfinished, problem)


def _rewritten(
    value: object, messages: list[Mapping[str, object]], said: Sequence[_Said | None], how: Treatment
) -> object:
    """The messages with the assistant's contents as they are to be shown; the value itself where that is all."""
    if not any(s.changed for s in said if s is not None):
        return value
    return [m if s is None else _with(m, _shown(s, how)) for m, s in zip(messages, said, strict=True)]


def _shown(said: _Said, how: Treatment) -> object:
    return said.whole if how.reasoning == "keep" or (said.unfinished and how.unfinished == "keep") else said.answer


def _said(message: Mapping[str, object], how: Treatment) -> _Said:
    content = message.get("content")
    apart = [*_fields(message), *_thinking_parts(content)]
    text = _plain(content)
    if not isinstance(text, str):
        return _Said(tuple(apart), text, False, text, bool(apart))
    opened = how.opened and not apart and not any(name in message for name in THOUGHT_FIELDS)
    parts = split_thoughts(text, (*THOUGHT_TAGS, *how.tags), opened=opened)
    silent = bool(apart) and not text.strip() and not message.get("tool_calls")
    whole = text
    if apart:
        head = "<think>\n" + "\n\n".join(apart).strip("\n")
        whole = head if silent else f"{head}\n</think>\n\n{text}"
    changed = bool(apart) or parts.answer != text
    return _Said((*apart, *parts.thoughts), parts.answer, parts.unfinished or silent, whole, changed)


def _with(message: Mapping[str, object], content: object) -> dict[str, object]:
    return {k: v for k, v in message.items() if k not in THOUGHT_FIELDS} | {"content": content}


def _messages(value: object) -> list[Mapping[str, object]] | None:
    """A list of messages, or None for all else."""
    found = [value] if isinstance(value, Mapping) else value
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        return None
    good = all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in found)
    return list(found) if good and found else None


def _fields(message: Mapping[str, object]) -> list[str]:
    """Thoughts in the fields of a message; servers repeat one under two names."""
    found = [message.get(name) for name in THOUGHT_FIELDS]
    return list(dict.fromkeys(t for t in found if isinstance(t, str) and t.strip()))


def _thinking_parts(content: object) -> list[str]:
    """Thoughts in the parts of a message's content."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return []
    out = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in THOUGHT_PARTS:
            text = next((part[k] for k in ("thinking", "reasoning", "text") if part.get(k)), "")
            if not isinstance(text, str) and isinstance(text, Sequence):
                text = "".join(str(p.get("text", "")) for p in text if isinstance(p, Mapping))
            out += [str(text)] if str(text).strip() else []
    return out


def _plain(content: object) -> object:
    """The text of a content; a content that is more than text and thought stays, for it is refused by name later."""
    if content is None:
        return ""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    rest = [p for p in content if not (isinstance(p, Mapping) and p.get("type") in THOUGHT_PARTS)]
    good = all(isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in rest)
    return "".join(p["text"] for p in rest) if good else content
