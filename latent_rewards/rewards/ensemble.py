"""Several rewards as one, on one judge, where all are read in one forward, or on a jury of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from latent_rewards.judge.hf import Need, Reading, Request
from latent_rewards.rewards.base import bounds_of, with_prompt_of
from latent_rewards.rewards.jury import Addressed, Jury, answered
from latent_rewards.rewards.latent import LatentReward, check_members, first_reasons
from latent_rewards.rewards.standard import Ranks, Standard, rank

How = Literal["min", "mean", "median", "weighted"]
Rows = Sequence[Mapping[str, Any]]


class EnsembleReward(LatentReward):
    """Several rewards as one: lowest, mean, median or weighted mean of their standardised scores.

    score = min_i, mean_i, median_i or sum_i w_i of z_i = (S_i - location_i) / scale_i

    Members on one judge are read in one forward. Members on several judges (a jury) are read at the same time, one
    request stream for each judge.

    Args:
        rewards: two or more.
        how: "min" (an attack has to fool all of them), "mean", "median" (one that is far off decides nothing) or
            "weighted".
        weights: of the members, for "weighted"; their sum counts as 1.
        location: of each reward's scores; see `fit`.
        scales: of each reward's scores; see `fit`.
        running: learn location and scale from the scores that a trainer asks for, batch by batch, the batch itself
            included; `score` uses what was learnt and learns nothing.
        statistics: file of location and scale, as `save` writes it, read now; with `running` it may be missing, and is
            written after every batch.
        ranks: whose scores `running` learns from: "all" ranks of the run, put together, so that all standardise alike
            to the bit; or each its "own".
        missing: what a judge that does not answer means: "none", no score for the batch, or "without": the score of
            the other members, for all rows of the batch. A row that a judge cannot read has no score either way.
        **options: see `Reward`; each member has its own prompt.

    Raises:
        ValueError: fewer than two rewards, statistics or weights that do not fit, or, with several judges, a member
            that asks its judge in several steps.
    """

    kind = "ensemble"

    def __init__(
        self,
        rewards: Sequence[LatentReward],
        *,
        how: How = "min",
        weights: Sequence[float] | None = None,
        location: Sequence[float] | None = None,
        scales: Sequence[float] | None = None,
        running: bool = False,
        statistics: str | Path | None = None,
        ranks: Ranks = "all",
        missing: Literal["none", "without"] = "none",
        **options: Any,
    ) -> None:
        _check(how=how, ranks=ranks, missing=missing)
        members = rewards if isinstance(rewards, Sequence) and not isinstance(rewards, str) else [rewards]
        check_members("EnsembleReward", *members, example="[ProbabilityWeightedReward(judge), VerifierReward(judge)]")
        if len(rewards) < 2:
            raise ValueError("an ensemble needs two rewards or more")
        if (running or statistics is not None) and (location is not None or scales is not None):
            raise ValueError("location and scales are given, fitted to a file (statistics), or learnt (running)")
        judges = list({id(r.judge): r.judge for r in rewards}.values())
        if len(judges) > 1 and (staged := [r.__name__ for r in rewards if r.staged]):
            raise ValueError(f"{staged} ask their judge in several steps, which a jury of several judges cannot do")
        self.rewards, self.how, self.missing = [r._as_part() for r in rewards], how, missing
        self.by_row = all(r.by_row for r in rewards)
        self.running, self.ranks = bool(running), ranks
        self.weights = _weights(how, weights, len(rewards))
        self.statistics = None if statistics is None else _own_file(Path(statistics), ranks)
        self.standard = self._standard(location, scales)
        options.setdefault("name", f"{how}-" + "-".join(r.__name__ for r in self.rewards))
        judge = judges[0] if len(judges) == 1 else Jury(judges)
        super().__init__(judge, **with_prompt_of(rewards[0], options))

    @property
    def location(self) -> list[float]:
        """Of each member's scores."""
        return self.standard.location.tolist()

    @property
    def scales(self) -> list[float]:
        """Of each member's scores."""
        return self.standard.scales.tolist()

    def options(self) -> dict[str, Any]:
        """The members with their location and scale, and how they are put together; their judges where they differ."""
        own: dict[str, Any] = {"rewards": [r.facts for r in self.rewards], "how": self.how}
        own |= {"location": [None if np.isnan(x) else x for x in self.location], "scales": self.scales}
        own |= {} if self.weights is None else {"weights": self.weights.tolist()}
        own |= {"running": self.ranks} if self.running else {}
        own |= {} if self.missing == "none" else {"missing": self.missing}
        if isinstance(self.judge, Jury):
            own["judges"] = [next(i for i, j in enumerate(self.judge.judges) if j is r.judge) for r in self.rewards]
        return own

    @property
    def score_range(self) -> tuple[float, float]:
        """What the members' standardised ends give; none where these are still learnt."""
        if self.running:
            return -np.inf, np.inf
        ends = (np.array([bounds_of(r) for r in self.rewards]).T - self.standard.location) / self.standard.scales
        if self.missing == "without":
            return float(ends[0].min()), float(ends[1].max())
        low, high = combined(ends.T, self.how, self.weights)
        return float(low), float(high)

    def fit(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> EnsembleReward:
        """Take location and scale of each reward from its scores of some completions; gives itself back.

        Raises:
            ValueError: a reward scores none of them, or all alike.
        """
        scores = [r.score(prompts, completions, **columns) for r in self.rewards]
        known = [s[~np.isnan(s)] for s in scores]
        flat = [r.__name__ for r, s in zip(self.rewards, known, strict=True) if len(s) < 2 or s.std() == 0]
        if flat:
            raise ValueError(f"{flat} score these {len(prompts)} completions all alike; nothing to standardise by")
        means, sds = [float(s.mean()) for s in known], [float(s.std()) for s in known]
        self.standard = Standard.given(self.standard.members, means, sds)
        return self

    def save(self, path: str | Path) -> None:
        """Write location and scale, and what they were learnt from, for `statistics=`."""
        self.standard.save(path)

    def _standard(self, location: Sequence[float] | None, scales: Sequence[float] | None) -> Standard:
        members = [f"{r.__name__} on {r.judge.name}" for r in self.rewards]
        if self.statistics is not None and (self.statistics.exists() or not self.running):
            found = Standard.load(self.statistics, members)
            if self.running and found.seen is None:
                raise ValueError(
                    f"{self.statistics}: fitted once, so there is nothing to learn on from; leave out running"
                )
            return found
        if self.running:
            return Standard.unknown(members)
        n = len(members)
        return Standard.given(
            members, [0.0] * n if location is None else location, [1.0] * n if scales is None else scales
        )

    def _prepare(self) -> None:
        """The members have been checked already."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Those of all rewards."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.inputs))

    @property
    def required(self) -> tuple[str, ...]:
        """What any reward requires."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.required))

    def check_row(self, row: Mapping[str, Any]) -> None:
        """As every reward."""
        for reward in self.rewards:
            reward.check_row(row)

    @property
    def need(self) -> Need:
        """As the first reward."""
        return self.rewards[0].need

    def requests(self, rows: Rows) -> list[Request]:
        """Those of all rewards, addressed where they go to several judges."""
        asked = [(reward.judge, request) for reward in self.rewards for request in reward.requests(rows)]
        return [Addressed.to(j, r) if isinstance(self.judge, Jury) else r for j, r in asked]

    def scores_of(self, rows: Rows, readings: Sequence[Reading]) -> np.ndarray:
        """(B,) standardised and put together; NaN where a member that counts has no score."""
        there, z = self._standardised(rows, readings)
        if self.missing == "without":
            if not there.any():
                return np.full(len(rows), np.nan)
            return combined(z[there], self.how, None if self.weights is None else self.weights[there])
        return combined(z, self.how, self.weights)

    def reasons(self, rows: Rows, readings: Sequence[Reading]) -> list[str]:
        """Those of the first reward that has some; or of which nothing was learnt yet."""
        unknown = [m for m, x in zip(self.standard.members, self.location, strict=True) if np.isnan(x)]
        if unknown:
            why = f"nothing was learnt yet of the scores of {unknown[0]}: a trainer has to call {self.__name__} first"
            return [why] * len(rows)
        return first_reasons(*(reward.reasons(rows, own) for reward, own in self._split(rows, readings)))

    def facts_of(self, rows: Rows, readings: Sequence[Reading]) -> dict[str, Any]:
        """How far the members disagree (standard deviation of their standardised scores), mean and row by row.

        Of a jury also `answered`, the share of the members whose judge answered.
        """
        there, z = self._standardised(rows, readings)
        apart = z[there].std(0) if there.sum() > 1 else np.full(len(rows), np.nan)
        known = apart[~np.isnan(apart)]
        metrics = {"disagreement": float(known.mean())} if len(known) else {}
        if isinstance(self.judge, Jury):
            metrics["answered"] = float(there.mean())
        return {"metrics": metrics, "extra": {"disagreement": [None if np.isnan(x) else float(x) for x in apart]}}

    def _as_part(self) -> Self:
        """As `Reward._as_part`.

        Raises:
            ValueError: it is to learn from what a trainer asks of it, which asks another reward.
        """
        if self.running:
            raise ValueError(
                f"{self.__name__} learns when a trainer calls it, and would learn nothing inside another reward: give "
                "it statistics= of a run, or `fit` it, without running"
            )
        return super()._as_part()

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if not completions:  # other ranks may have some
            self._learn(np.zeros((len(self.rewards), 0)), columns)
        return super()._score(prompts, completions, columns)

    def _scored(
        self, rows: Rows, readings: Sequence[Reading], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if self.running:
            self._learn(self._members(rows, readings)[1], columns)
        return super()._scored(rows, readings, columns)

    def _learn(self, scores: np.ndarray, columns: Mapping[str, Any]) -> None:
        """From (M, B) scores that a trainer asks for."""
        if not self.running or not {"trainer_state", "log_metric"} & columns.keys():
            return
        self.standard.learn(scores, self.ranks)
        if self.statistics is not None and (self.ranks == "own" or rank() == 0):
            self.standard.save(self.statistics)

    def _standardised(self, rows: Rows, readings: Sequence[Reading]) -> tuple[np.ndarray, np.ndarray]:
        """(M,) which members' judges answered, and (M, B) standardised scores."""
        there, scores = self._members(rows, readings)
        parts = zip(scores, self.location, self.scales, strict=True)
        return there, np.stack([(s - location) / scale for s, location, scale in parts])

    def _members(self, rows: Rows, readings: Sequence[Reading]) -> tuple[np.ndarray, np.ndarray]:
        """(M,) which members' judges answered, and (M, B) scores as each member gives them alone."""
        there, scores = [], []
        for reward, own in self._split(rows, readings):
            there.append(answered(own))
            scores.append(reward.rewards_of(rows, own)[0] if there[-1] else np.full(len(rows), np.nan))
        return np.array(there, dtype=bool), np.stack(scores)

    def _split(self, rows: Rows, readings: Sequence[Reading]) -> list[tuple[LatentReward, Sequence[Reading]]]:
        out, at = [], 0
        for reward in self.rewards:
            n = len(reward.requests(rows))
            out.append((reward, readings[at : at + n]))
            at += n
        return out


def combined(scores: np.ndarray, how: How, weights: np.ndarray | None = None) -> np.ndarray:
    """(B,) one score of several members' (M, B); NaN where one of them is.

    Args:
        scores: (M, B).
        how: "min", "mean", "median" or "weighted".
        weights: (M,) for the last; their sum counts as 1.
    """
    if how == "min":
        return scores.min(0)
    if how == "median":
        return np.median(scores, 0)
    if weights is None:
        return scores.mean(0)
    return (weights[:, None] * scores).sum(0) / weights.sum()


def _weights(how: How, weights: Sequence[float] | None, n: int) -> np.ndarray | None:
    if (weights is None) == (how == "weighted"):
        raise ValueError("how='weighted' and weights go together")
    if weights is None:
        return None
    out = np.array(weights, dtype=np.float64)
    if out.shape != (n,) or not np.isfinite(out).all() or not (out > 0).all():
        raise ValueError(f"need a positive weight for each of {n} rewards, got {list(weights)}")
    return out


def _own_file(path: Path, ranks: Ranks) -> Path:
    """Where ranks learn each for itself, those after the first have files of their own."""
    return path if ranks == "all" or rank() == 0 else path.with_name(f"{path.stem}.rank{rank()}{path.suffix}")


def _check(**given: str) -> None:
    for name, value in given.items():
        if value not in _KNOWN[name]:
            raise ValueError(f"{name} must be one of {_KNOWN[name]}, got {value!r}")


_KNOWN = {"how": get_args(How), "ranks": get_args(Ranks), "missing": ("none", "without")}
