"""Scores of several models' responses to the same prompts, kept on disk so that a stopped run goes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.files.cache import Cache, content_key
from latent_rewards.rewards.base import Reward

logger = logging.getLogger(__name__)


@dataclass
class ResponseScores:
    """What rewards gave to P prompts times M responses.

    Attributes:
        scores: reward name -> (P, M) float64; NaN where there is no response or no score.
        reasons: reward name -> {(prompt, model): why it has no score}.
        seconds: time spent in the rewards by this call; 0 when all came from the cache.
    """

    scores: dict[str, np.ndarray]
    reasons: dict[str, dict[tuple[int, int], str]] = field(default_factory=dict)
    seconds: float = 0.0


def score_responses(
    rewards: Sequence[Reward],
    prompts: Sequence[Any],
    responses: Sequence[Sequence[Any]],
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    cache: str | Path | None = None,
    chunk: int = 8,
) -> ResponseScores:
    """Every reward on every response; rewards on one judge and prompt share its forward.

    Args:
        rewards: differently named rewards.
        prompts: P strings or message lists.
        responses: P rows of M responses; None marks a model that gave none (it gets no score, never a low one).
        columns: further slots of the judge prompt, P entries each.
        cache: folder for the scores, by content and by each reward's fingerprint; None keeps nothing.
        chunk: prompts per call of a reward. Chunks are cut from the whole list, so that a resumed run reads the same
            batches as an undisturbed one.

    Raises:
        ValueError: lengths differ, or two rewards have one name.
        TypeError: with a cache, a reward or judge that states no fingerprint.
    """
    names = [reward.__name__ for reward in rewards]
    if len(set(names)) < len(names):
        raise ValueError(f"rewards need different names, got {names}")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} rows of responses")
    widths = {len(row) for row in responses}
    if len(widths) > 1:
        raise ValueError(f"every prompt needs one response (or None) per model, got rows of {sorted(widths)}")
    shape = (len(prompts), widths.pop() if widths else 0)
    out = ResponseScores({n: np.full(shape, np.nan) for n in names}, {n: {} for n in names})
    fingerprints = {} if cache is None else {reward.__name__: reward.fingerprint for reward in rewards}
    store = None if cache is None else Cache(cache, rank=int(os.environ.get("RANK", "0")))
    try:
        for start in range(0, len(prompts), chunk):
            cells = [
                (p, m)
                for p in range(start, min(start + chunk, len(prompts)))
                for m, text in enumerate(responses[p])
                if text is not None
            ]
            rows = [
                {"prompt": prompts[p], "completion": responses[p][m], **{k: v[p] for k, v in (columns or {}).items()}}
                for p, m in cells
            ]
            for reward in rewards:
                _score_cells(reward, fingerprints.get(reward.__name__, ""), cells, rows, out, store)
            logger.info("scored the responses to %d of %d prompts", min(start + chunk, len(prompts)), len(prompts))
    finally:
        if store is not None:
            store.close()
    for name in names:
        absent = [(p, m) for p, row in enumerate(responses) for m, text in enumerate(row) if text is None]
        out.reasons[name] |= dict.fromkeys(absent, "no response")
    return out


def _score_cells(
    reward: Reward,
    fingerprint: str,
    cells: list[tuple[int, int]],
    rows: list[dict[str, Any]],
    out: ResponseScores,
    store: Cache | None,
) -> None:
    name = reward.__name__
    keys = [content_key(fingerprint, "", row) for row in rows]
    known = store.get(keys, "score") if store is not None else [None] * len(rows)
    todo = [i for i, value in enumerate(known) if value is None]
    if todo:
        slots = {key: [rows[i][key] for i in todo] for key in rows[0]}
        outages, started = reward.judge.outages, time.perf_counter()
        values, why = reward.score_with_reasons(slots.pop("prompt"), slots.pop("completion"), **slots)
        seconds = time.perf_counter() - started
        out.seconds += seconds
        for i, value, reason in zip(todo, values, why, strict=True):
            known[i] = [None, reason] if np.isnan(value) else [float(value), None]
        if store is not None and reward.judge.outages == outages:  # what nobody answered is asked again another time
            fresh: list[tuple[bytes, str, Any]] = [(keys[i], "score", known[i]) for i in todo]
            store.put(fresh, stage=f"score {name}", texts=len(todo), tokens=0, seconds=seconds)
    for cell, found in zip(cells, known, strict=True):
        assert found is not None
        value, reason = found
        if value is None:
            out.reasons[name][cell] = reason or "no score"
        else:
            out.scores[name][cell] = value
