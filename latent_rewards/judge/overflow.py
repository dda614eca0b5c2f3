"""Texts that a judge cannot read whole: cut, left out, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from latent_rewards.files.sources import RowError
from latent_rewards.judge.encoding import Encoded


def fit(
    encoded: list[Encoded], *, limit: int, vocabulary: int, on_overflow: Literal["none", "error", "truncate"]
) -> tuple[list[Encoded], list[str | None]]:
    """Texts as the judge reads them, and why some are not read.

    Args:
        encoded: (B,) token ids.
        limit: most tokens of a text.
        vocabulary: rows of the judge's embedding.
        on_overflow: as for `HFJudge`.

    Returns:
        (B,) texts, some cut; (B,) None for one that is read.

    Raises:
        RowError: a text is too long, with `on_overflow="error"`.
    """
    encoded, reasons = list(encoded), [e.problem or beyond(e.ids, vocabulary) for e in encoded]
    for i, e in enumerate(encoded):
        if len(e.ids) <= limit or reasons[i] is not None:
            continue
        reason = f"{len(e.ids)} tokens, but this judge reads at most {limit}"
        if on_overflow == "error":
            raise RowError(i, f"{reason}; shorten it, or set on_overflow='none' or 'truncate'")
        cut = cut_middle(e, len(e.ids) - limit) if on_overflow == "truncate" else None
        encoded[i], reasons[i] = cut or e, None if cut else reason
    return encoded, reasons


def cut_middle(encoded: Encoded, surplus: int) -> Encoded | None:
    """Drop `surplus` tokens from the middle of the completion; None when it has too few."""
    start, end = encoded.completion
    if end - start <= surplus:
        return None
    keep = end - start - surplus
    left = start + (keep + 1) // 2
    ids = encoded.ids[:left] + encoded.ids[left + surplus :]
    target = None if encoded.target is None else encoded.target - surplus
    return replace(encoded, ids=ids, completion=(start, end - surplus), target=target)


def beyond(ids: Sequence[int], size: int) -> str | None:
    """Names the first token id that an embedding of `size` rows lacks."""
    high = next((i for i in ids if i >= size), None)
    return None if high is None else f"token id {high}, but the judge's embedding has {size} rows"
