"""What a person should make of a trained probe, in one or two sentences a data file: pure, on its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latent_rewards.stats.power import about, rows_needed

ENOUGH = 50  # unseen prompts below which no figure of a probe is relied on


def verdict(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each data file, and each aspect, whether the probe beats the prompted judge and length on unseen prompts.

    Args:
        metrics: rows as `latent_rewards.probes.train.measure` gives them.
    """
    parts: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in metrics:
        parts.setdefault((str(row["source"]), str(row.get("aspect", ""))), {})[str(row["scorer"])] = row
    return [_of(f"{source} {aspect}".strip(), rows) for (source, aspect), rows in parts.items()]


def _of(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    n = int(rows["probe"]["n"])
    prompts = min(n, int(rows["probe"].get("prompts", n)))  # some have no pair; cards of before do not say it
    ahead = {scorer: rows[scorer]["probe_minus"] for scorer in ("prompted", "length") if scorer in rows}
    unit = "unseen pairs" if "accuracy" in rows["probe"] else "unseen rows"
    some_of = f"{n} {unit}" if prompts == n else f"{n} {unit} of {prompts} prompts"
    for scorer, gap in ahead.items():
        if gap[1] is None or gap[1] != gap[1]:  # no interval; a saved card holds null for NaN
            return f"{name}: {some_of} are too few to compare the probe with {_SAID[scorer]}; give more rows."
    told = {scorer: f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]" for scorer, gap in ahead.items()}
    if prompts < ENOUGH:
        seen = ", ".join(f"minus {_SAID[s]} {told[s]}" for s in ahead)
        more = "more rows" if prompts == n else "rows of more prompts"
        return f"{name}: {some_of} are too few to rely on (the probe {seen}): give {more}, to test on {ENOUGH} or more."
    behind = [scorer for scorer, gap in ahead.items() if gap[2] < 0]
    level = [scorer for scorer, gap in ahead.items() if gap[1] <= 0 <= gap[2]]
    if behind:
        some = " and ".join(f"{_SAID[s]} ({told[s]})" for s in behind)
        advice = "use the prompted score" if "prompted" in behind else "do not train on it"
        return f"{name}: on {some_of} the probe is below {some}: {advice}."
    if level:
        some = " and ".join(f"{_SAID[s]} ({told[s]})" for s in level)
        need = [rows_needed(ahead[s][0], ahead[s][1], ahead[s][2], n) if ahead[s][0] > 0 else None for s in level]
        most = max((x for x in need if x is not None), default=None)
        more = (
            f"about {about(most)} {unit} would settle a lead of this size (80 % power, by the width of the interval)"
            if most is not None and None not in need
            else "it is not ahead there, so prefer the prompted score, or train on more rows"
        )
        return f"{name}: on {some_of} the probe is not separated from {some}: {more}."
    some = " and ".join(f"{_SAID[s]} ({told[s]})" for s in ahead)
    return f"{name}: on {some_of} the probe beats {some}: worth using on rows like these; check it on others."


_SAID = {"prompted": "the prompted score", "length": "length"}
