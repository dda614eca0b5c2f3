"""Location and scale of scores, fitted once or learnt batch by batch, so that several judges can be put together."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from latent_rewards.files.atomic import write_text

FORMAT = 1
Ranks = Literal["all", "own"]


class Moments(NamedTuple):
    """What of the scores of M members has been seen.

    Attributes:
        number: (M,) scores.
        mean: (M,) of them; 0 where there is none.
        squares: (M,) sum of their squared distances from the mean.
    """

    number: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray) -> Moments:
        """Of (M, B) scores; NaN is left out."""
        known = ~np.isnan(scores)
        count = known.sum(1).astype(np.float64)
        mean = np.where(known, scores, 0.0).sum(1) / np.maximum(count, 1)
        return cls(count, mean, np.where(known, (scores - mean[:, None]) ** 2, 0.0).sum(1))

    def with_more(self, other: Moments) -> Moments:
        """Of both together, as if their scores had been seen in one batch.

        Source: Chan, Golub and LeVeque 1983, eq. 2.1, which is Welford's update for a batch.
        """
        count = self.number + other.number
        share, step = other.number / np.maximum(count, 1), other.mean - self.mean
        squares = self.squares + other.squares + step**2 * self.number * share
        return Moments(count, self.mean + step * share, squares)

    @property
    def sd(self) -> np.ndarray:
        """(M,) standard deviation of what was seen."""
        return np.sqrt(self.squares / np.maximum(self.number, 1))


@dataclass
class Standard:
    """Location and scale of each member of an ensemble.

    Attributes:
        members: what each is called, so that a file of other members is refused.
        location: (M,) taken from its scores; NaN where nothing is known of them.
        scales: (M,) by which they are divided, positive.
        seen: what location and scale were computed from; None where they were given.
    """

    members: tuple[str, ...]
    location: np.ndarray
    scales: np.ndarray
    seen: Moments | None = None

    @classmethod
    def given(cls, members: Sequence[str], location: Sequence[float], scales: Sequence[float]) -> Standard:
        """From numbers.

        Raises:
            ValueError: not one finite location and one positive, finite scale for each.
        """
        n = len(members)
        fine = len(location) == n == len(scales) and all(np.isfinite(location)) and all(np.isfinite(scales))
        if not fine or not all(s > 0 for s in scales):
            raise ValueError(f"need a finite location and a positive scale for each of {n} rewards")
        return cls(tuple(members), np.array(location, dtype=np.float64), np.array(scales, dtype=np.float64))

    @classmethod
    def unknown(cls, members: Sequence[str]) -> Standard:
        """Of members that nothing has been seen of."""
        return cls(tuple(members), *_as_used(none := Moments.of(np.zeros((len(members), 0)))), none)

    def learn(self, scores: np.ndarray, ranks: Ranks = "all") -> None:
        """Take a batch into account: (M, B) scores, NaN where there is none.

        With ranks "all" and `torch.distributed` under way, this is collective: what every rank has seen is put together
        in the order of the ranks, so that all have the same numbers afterwards, to the bit.

        Raises:
            RuntimeError: several ranks, in a thread, where ranks could wait for each other for ever.
        """
        assert self.seen is not None
        for part in _of_all_ranks(Moments.of(scores)) if ranks == "all" else [Moments.of(scores)]:
            self.seen = self.seen.with_more(part)
        self.location, self.scales = _as_used(self.seen)

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON; the file appears whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        seen = None if self.seen is None else {k: v.tolist() for k, v in self.seen._asdict().items()}
        location = [None if np.isnan(x) else x for x in self.location.tolist()]
        raw = {"format": FORMAT, "members": self.members, "location": location, "scales": self.scales.tolist()}
        write_text(Path(path), json.dumps(raw | {"seen": seen}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, members: Sequence[str]) -> Standard:
        """What `save` wrote, bit for bit.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: another kind of file, or statistics of other members.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            if raw["format"] != FORMAT:
                raise ValueError(f"format {raw['format']!r}, expected {FORMAT}")
            location = np.array([np.nan if x is None else x for x in raw["location"]], dtype=np.float64)
            scales, seen = np.array(raw["scales"], dtype=np.float64), raw["seen"]
            moments = None if seen is None else Moments(*(np.array(seen[k], dtype=np.float64) for k in Moments._fields))
            shapes = {x.shape for x in (location, scales, *(moments or ()))}
            if shapes != {(len(raw["members"]),)} or not (scales > 0).all():
                raise ValueError("not one location and one positive scale for each member")
        except FileNotFoundError as err:
            raise FileNotFoundError(f"no statistics of scores: {path} is missing; `fit` and `save` write one") from err
        except (ValueError, TypeError, KeyError) as err:
            raise ValueError(f"{path}: no statistics of scores: {err}") from err
        if list(raw["members"]) != list(members):
            raise ValueError(f"{path}: statistics of {raw['members']}, but the members are {list(members)}")
        return cls(tuple(members), location, scales, moments)


def rank() -> int:
    """Of this process in its run; 0 where there is one process alone."""
    return int(os.environ.get("RANK", "0"))


def _as_used(seen: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale: 1 where all scores seen are alike up to rounding, NaN and 1 where there is none."""
    apart = seen.sd > 1e-9 * np.abs(seen.mean)
    return np.where(seen.number > 0, seen.mean, np.nan), np.where(apart, seen.sd, 1.0)


def _of_all_ranks(mine: Moments) -> list[Moments]:
    """What every rank has seen, in the order of the ranks; collective."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [mine]
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "running statistics of several ranks are put together in the trainer's own thread alone: fit them before "
            "training, or let each rank learn from its own rows (ranks='own')"
        )
    out: list[Moments] = [mine] * dist.get_world_size()
    dist.all_gather_object(out, mine)
    return out
