"""The judge's dialogue in its chat template: which text stands where, what became of system turn and thought."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from latent_rewards.judge.messages import Dialogue, Segment, Turn
from latent_rewards.judge.thinking import SWITCHES, closing, open_thought
from latent_rewards.judge.tokens import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template's "today" is, so that the same rows score the same tomorrow; Llama 3 names this day by default.
TODAY = datetime.date(2024, 7, 26)

_MARK = re.compile("\ue002(\\d+)\ue003")
_DIRECTIVES = "a A b B c d D e F G H I j m M p S T u U V w W x X y Y Z z -d -m -j -H -I -M -S".split()
_BROKEN = (TemplateError, TypeError, ValueError, LookupError, AttributeError)  # what a template raises on odd messages
_SEPARATOR = Segment("\n\n")
# Stands for everybody else's text while a template renders, to see whether that is left as it is.
_SAMPLE = "aB \"c\" & 'd' <e>  f,\n\n\tg"


class Layout(NamedTuple):
    """A rendered dialogue.

    Attributes:
        parts: our text, and indices of the dialogue's untrusted segments, in the order of the text.
        system_role: "its own", "merged into the user turn", or "no chat template".
        thinking: one line on what became of the judge's thought.
    """

    parts: tuple[Segment | int, ...]
    system_role: str
    thinking: str


class ChatTemplate:
    """Lays dialogues out with a tokenizer's chat template.

    Args:
        tokenizer: any Hugging Face tokenizer.
        kwargs: variables of its chat template; None turns thinking off.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, object] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kwargs = {"enable_thinking": False} if kwargs is None else dict(kwargs)
        self._given = kwargs is not None
        own = self.kwargs.get("chat_template")
        self.text = own if isinstance(own, str) else _template_text(tokenizer)
        self._vocabulary = set(getattr(tokenizer, "all_special_tokens", ())) | {
            str(getattr(t, "content", t)) for t in (getattr(tokenizer, "added_tokens_decoder", None) or {}).values()
        }

    def layout(self, dialogue: Dialogue) -> Layout:
        """Where each segment of a dialogue stands.

        Raises:
            ValueError: the template drops, repeats or reorders text of ours or of a row, changes that of a row, or
                opens a thought that we cannot close; says what it does and what to do.
        """
        if self.text is None:
            plain = [m for t in dialogue.turns for m in (*t.segments, _SEPARATOR)]
            return Layout(_joined(plain, dialogue.prefill), "no chat template", "no chat template")
        problems = []
        for merged, as_parts in ((False, False), (True, False), (False, True), (True, True)):
            turns = merge_system(dialogue.turns) if merged else dialogue.turns
            if merged and turns == dialogue.turns:
                continue
            try:
                pieces = self._render(turns, as_parts, self.kwargs)
            except _BROKEN as err:
                problems.append(f"{'with the system text in the user turn' if merged else 'as it is'}: {err}")
                continue
            return self._finish(dialogue, turns, as_parts, pieces, "merged into the user turn" if merged else "its own")
        raise ValueError(
            "the judge's chat template drops, changes, repeats or reorders parts of a message, so the judge would not "
            f"read what was written ({'; '.join(dict.fromkeys(problems))}); set tokenizer.chat_template to one that "
            "keeps them"
        )

    def _finish(
        self, dialogue: Dialogue, turns: Sequence[Turn], as_parts: bool, pieces: list[Segment], role: str
    ) -> Layout:
        """The layout of marked pieces, its thought closed unless the judge is to write one."""
        kwargs: Mapping[str, object] = self.kwargs
        how = "no thought in the chat template"
        if open_thought(pieces[-1].text) and not self._given:
            extra = {k: v for k, v in SWITCHES.items() if re.search(rf"\b{k}\b", self.text or "")}
            kwargs = {**kwargs, **extra}
            pieces = self._render(turns, as_parts, kwargs)
        tag = open_thought(pieces[-1].text)
        if tag and dialogue.sampled and not dialogue.prefill:
            how = f"left open after {tag}, for a sampled answer"
        elif tag:
            pieces.append(Segment(closing(pieces[-1].text, self._vocabulary.__contains__)))
            how = f"closed by us after {tag}"
        elif kwargs and pieces != self._render(turns, as_parts, {}):
            how = "switched by " + ", ".join(f"{k}={v!r}" for k, v in kwargs.items() if k in (self.text or ""))
        return Layout(_joined(pieces, dialogue.prefill), role, how)

    def _render(self, turns: Sequence[Turn], as_parts: bool, kwargs: Mapping[str, object]) -> list[Segment]:
        """The rendered text in order: segments of ours as the template wrote them, untrusted ones as given."""
        segments: list[Segment | None] = []
        messages, roles = [], []
        for turn in turns:
            content = ""
            for segment in (*turn.segments, None):  # None: the end of the turn, which a template may not cut off
                own = segment is None or segment.slot is None
                content += mark(len(segments)) + (segment.text if segment and own else "" if own else _SAMPLE)
                segments.append(segment)
                roles.append(turn.role)
            messages.append({"role": turn.role, "content": _content(content, as_parts)})
        first, *rest = _MARK.split(self._apply(messages, kwargs))
        seen = [int(i) for i in rest[::2]]
        if seen != list(range(len(segments))):
            raise ValueError(f"it {_fault(seen, roles)}")
        out = [Segment(first)]
        for i, after in zip(seen, rest[1::2], strict=True):
            segment = segments[i]
            if segment is not None and segment.slot is not None:
                if not after.startswith(_SAMPLE):
                    raise ValueError(f"it changes text of the {roles[i]} turn")
                out.append(segment)
                after = after.removeprefix(_SAMPLE)
            out.append(Segment(after))
        return out

    def _apply(self, messages: list[dict[str, Any]], kwargs: Mapping[str, object]) -> str:
        text = self.text or ""
        dated = {"chat_template": _date_macro() + text} if "strftime_now" in text else {}
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **kwargs, **dated}
        return str(self.tokenizer.apply_chat_template(messages, **options))


def mark(i: int) -> str:
    """Stands for text while a template renders."""
    return f"\ue002{i}\ue003"


def sample_dialogue() -> Dialogue:
    """A dialogue of the usual shape, to see what a template does."""
    return Dialogue((Turn("system", (Segment("S"),)), Turn("user", (Segment("U"), Segment("", "completion")))))


def merge_system(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with the system text at the head of the first turn after it."""
    if len(turns) < 2 or turns[0].role != "system":
        return tuple(turns)
    first = Turn(turns[1].role, (*turns[0].segments, _SEPARATOR, *turns[1].segments))
    return (first, *turns[2:])


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that `apply_chat_template` would use, or None."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    return template if isinstance(template, str) else str(tokenizer.get_chat_template())


def _content(text: str, as_parts: bool) -> object:
    return [{"type": "text", "text": text}] if as_parts else text


def _fault(seen: Sequence[int], roles: Sequence[str]) -> str:
    """What a template did to the marks, in words."""
    lost = sorted({roles[i] for i in set(range(len(roles))) - set(seen)})
    if lost:
        return f"drops text of the {' and the '.join(lost)} turn"
    return "repeats text" if len(seen) > len(set(seen)) else "reorders the turns"


def _joined(pieces: Sequence[Segment], prefill: str) -> tuple[Segment | int, ...]:
    """Neighbouring texts of ours in one, untrusted segments by their number."""
    return tuple(_walk([*pieces, Segment(prefill)]))


def _walk(pieces: Sequence[Segment]) -> Iterator[Segment | int]:
    text, n = "", 0
    for piece in pieces:
        if piece.slot is None:
            text += piece.text
            continue
        if text:
            yield Segment(text)
        yield n
        text, n = "", n + 1
    if text:
        yield Segment(text)


def _date_macro() -> str:
    """Jinja source that puts a fixed day in the place of `strftime_now`."""
    day = datetime.datetime.combine(TODAY, datetime.time(12), tzinfo=datetime.UTC)
    steps = "".join(f" | replace('%{d}', {day.strftime(f'%{d}')!r})" for d in _DIRECTIVES)
    return "{%- macro strftime_now(format) -%}{{- format" + steps + " -}}{%- endmacro -%}{{- '' }}"


def pieces(layout: Layout, untrusted: Sequence[Segment]) -> tuple[list[Piece], tuple[int, int, int]]:
    """The text of a row, and the characters where untrusted text and the completion begin and it ends; -1: none."""
    row: list[Piece] = []
    at, first, start, end = 0, -1, -1, -1
    for part in layout.parts:
        segment = part if isinstance(part, Segment) else untrusted[part]
        row.append(Piece(segment.text, segment.slot is None))
        if segment.slot is not None and first < 0:
            first = at
        if segment.slot == "completion" and start < 0:
            start = at
        at += len(segment.text)
        end = at if segment.slot == "completion" else end
    return row, (first, start, end)
