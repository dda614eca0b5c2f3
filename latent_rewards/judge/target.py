"""A text that stands as the judge's answer, so that its likelihood can be read: which one, and its tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from latent_rewards.judge.messages import to_text
from latent_rewards.judge.thoughts import Treatment, read_reply
from latent_rewards.judge.tokens import Piece, Spelling, Tokens


def check_target(target: str | None, kind: str, shown: Collection[str], optional: Collection[str]) -> None:
    """Whether a prompt of a kind may have this target.

    Args:
        target: a slot, or None.
        kind: of the prompt.
        shown: slots of its body.
        optional: slots that may be missing.

    Raises:
        ValueError: it may not.
    """
    if (target is not None) != (kind == "likelihood"):
        raise ValueError("kind 'likelihood', and no other, needs 'target': the slot that stands as the answer")
    if target is not None and (target in (*shown, "prompt") or not target.isidentifier()):
        raise ValueError(f"'target' must be a slot that the body does not show, got {target!r}")
    if target in optional:
        raise ValueError(f"the target {target!r} cannot be optional")


def target_text(slot: str, value: object, treatment: Treatment | None) -> tuple[str, str | None]:
    """Text of a target without the white space around it, and why the row must not be scored.

    Args:
        slot: of the target.
        value: text or messages.
        treatment: of the thoughts in it; None where it is no reply of a policy.

    Raises:
        ValueError: neither text nor messages; or an empty column, which only the data can mend.
    """
    problem = None
    if treatment is not None:
        reply = read_reply(value, treatment)
        value, problem = reply.shown, reply.problem
    text = to_text(value).strip()
    if not text and treatment is None:
        raise ValueError(f"{slot!r} is empty, so that no token of it has a likelihood; fill it in or leave the row out")
    return text, problem or (None if text else f"the {slot} is empty: it has no token that could have a likelihood")


def continuations(
    tokens: Spelling, before: Sequence[Sequence[Piece]], ids: Sequence[Sequence[int]], targets: Sequence[str]
) -> list[tuple[list[int], str | None]]:
    """Token ids of targets as they go on from what the judge has read, and why one cannot be read.

    They are those of the whole text where that begins with the tokens of the text before. Where a token of the whole
    text would reach across the border, which a judge that has read up to there can no longer write, they are those of
    the target in a line of its own.

    Args:
        tokens: the tokenizer.
        before: pieces of each text before its target.
        ids: their token ids.
        targets: untrusted texts, none empty.
    """
    rows = [[*row, Piece(target, False)] for row, target in zip(before, targets, strict=True)]
    out = []
    for found, own, target in zip(_encoded(tokens, rows), ids, targets, strict=True):
        clean = found.ids[: len(own)] == list(own) and len(found.ids) > len(own)
        out.append((found.ids[len(own) :], found.problem) if clean else _in_a_line(tokens, target))
    return out


def _in_a_line(tokens: Spelling, target: str) -> tuple[list[int], str | None]:
    """Ids of a target that begins a line; those of the target alone where it takes the line break along."""
    ours, own = Piece("\n", True), Piece(target, False)
    line, both, alone = _encoded(tokens, [[ours], [ours, own], [own]])
    n = len(line.ids)
    return (both.ids[n:], both.problem) if both.ids[:n] == line.ids else (alone.ids, alone.problem)


def _encoded(tokens: Spelling, rows: Sequence[Sequence[Piece]]) -> list[Tokens]:
    return tokens.encode(rows, [()] * len(rows))
