"""Tokenizers that lay a dialogue out and tokenise it in one step, such as mistral-common's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_rewards.judge.layout import merge_system
from latent_rewards.judge.messages import Dialogue, Segment, Turn
from latent_rewards.judge.tokens import common

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Whole(NamedTuple):
    """Ids of a dialogue, the ids of it that come before each border, and why it cannot be read."""

    ids: list[int]
    borders: list[int]
    problem: str | None


class OwnTemplate:
    """Encodes whole dialogues with the tokenizer's own `apply_chat_template`.

    A border lies where the ids of the dialogue, cut off there, end. Such tokenizers write control tokens by themselves
    and read them in nobody's text; that they do is checked on every text.

    Args:
        tokenizer: its `apply_chat_template(messages, tokenize=True)` gives ids.
        kwargs: what else to pass to it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, object] | None = None) -> None:
        self.tokenizer, self.kwargs = tokenizer, dict(kwargs or {})
        self._special = {int(i) for i in getattr(tokenizer, "all_special_ids", ())}
        self._special -= {getattr(tokenizer, "unk_token_id", None)}  # stands for unknown characters, too
        self._roles: dict[object, tuple[bool, list[int]]] = {}

    def encode(self, dialogue: Dialogue, borders: Sequence[tuple[int, int]]) -> Whole:
        """Ids of a dialogue; borders are (segment of all turns, characters of it that come before).

        Raises:
            ValueError: the tokenizer drops, repeats or reorders text of ours or of a row.
        """
        merged, control = self._shape(dialogue)
        turns = merge_system(dialogue.turns) if merged else dialogue.turns
        shift = 1 if merged else 0  # merging puts a separator behind the system segment
        ids = self._apply(turns, dialogue.prefill)
        problem = None
        if [i for i in ids if i in self._special] != control:
            problem = "the text spells a control token, which this judge's tokenizer cannot write as plain text"
        at = [common(ids, self._apply(_cut(turns, n + shift, chars), "")) for n, chars in borders]
        return Whole(ids, at, problem)

    def continued(self, dialogue: Dialogue, before: Sequence[int]) -> tuple[list[int], str | None]:
        """Ids of a dialogue with its target behind them, and why it cannot be read.

        Args:
            dialogue: one with a target.
            before: its ids without the target.
        """
        merged, control = self._shape(dialogue)
        turns = merge_system(dialogue.turns) if merged else dialogue.turns
        ids = self._apply(turns, dialogue.prefill + (dialogue.target or ""))
        if ids[: len(before)] != list(before) or len(ids) == len(before):
            return list(before), "this judge's tokenizer writes the answer in tokens that reach into what comes before"
        if [i for i in ids if i in self._special] != control:
            return ids, "the text spells a control token, which this judge's tokenizer cannot write as plain text"
        return ids, None

    def system_role(self, dialogue: Dialogue) -> str:
        """How the system text reaches the judge."""
        return "merged into the user turn" if self._shape(dialogue)[0] else "its own"

    def neutral(self, dialogue: Dialogue) -> list[int]:
        """Ids of the dialogue with "x" for everybody else's text."""
        turns = merge_system(dialogue.turns) if self._shape(dialogue)[0] else dialogue.turns
        return self._apply([Turn(t.role, tuple(_neutral(s) for s in t.segments)) for t in turns], dialogue.prefill)

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as the tokenizer reads them, no BOS."""
        return [list(self.tokenizer.encode(t, add_special_tokens=False)) for t in texts]

    def _shape(self, dialogue: Dialogue) -> tuple[bool, list[int]]:
        """Whether the system text must be merged, and the control tokens of a dialogue of this shape."""
        shape = (
            dialogue.prefill,
            tuple((t.role, tuple(s.text if s.slot is None else None for s in t.segments)) for t in dialogue.turns),
        )
        if shape not in self._roles:
            merged = not self._keeps(dialogue.turns)
            if merged and not self._keeps(merge_system(dialogue.turns)):
                raise ValueError(
                    "the judge's chat template drops, repeats or reorders parts of a message, so the judge would not "
                    "read what was written; use a tokenizer that keeps them"
                )
            if len(self._roles) >= 4096:
                self._roles.clear()
            self._roles[shape] = merged, []
            self._roles[shape] = merged, [i for i in self.neutral(dialogue) if i in self._special]
        return self._roles[shape]

    def _keeps(self, turns: Sequence[Turn]) -> bool:
        """Whether every mark put into the turns comes back once and in order."""
        marked, n = [], 0
        for turn in turns:
            marks = " ".join(_mark(n + i) for i in range(len(turn.segments) + 1))
            marked.append(Turn(turn.role, (Segment(marks),)))
            n += len(turn.segments) + 1
        try:
            text = str(self.tokenizer.decode(self._apply(marked, "")))
        except (ValueError, TypeError, LookupError, NotImplementedError):
            return False
        at = [text.find(_mark(i)) for i in range(n)]
        return -1 not in at and at == sorted(at) and all(text.count(_mark(i)) == 1 for i in range(n))

    def _apply(self, turns: Sequence[Turn], prefill: str) -> list[int]:
        messages = [{"role": t.role, "content": "".join(s.text for s in t.segments)} for t in turns]
        options: dict[str, Any] = {"tokenize": True, **self.kwargs}
        if prefill:
            messages.append({"role": "assistant", "content": prefill})
            options["continue_final_message"] = True
        found: Any = self.tokenizer.apply_chat_template(messages, **options)
        return [int(i) for i in (found["input_ids"] if isinstance(found, Mapping) else found)]


def lays_out_itself(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer without a chat template makes ids of a dialogue all the same."""
    if getattr(tokenizer, "chat_template", None) or not hasattr(tokenizer, "apply_chat_template"):
        return False
    try:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=True)
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return False
    return bool(ids)


def _mark(i: int) -> str:
    """A word that any vocabulary can write and no template does."""
    return f"qz{i}zq"


def _neutral(segment: Segment) -> Segment:
    return segment if segment.slot is None else Segment("x")


def _cut(turns: Sequence[Turn], segment: int, chars: int) -> list[Turn]:
    """The turns up to a character of a segment, counted over all turns."""
    out: list[Turn] = []
    for turn in turns:
        if segment < len(turn.segments):
            kept = [*turn.segments[:segment], Segment(turn.segments[segment].text[:chars])]
            return [*out, Turn(turn.role, tuple(kept))]
        out.append(turn)
        segment -= len(turn.segments)
    return out
