"""Calibration: from a score to a probability, a human rating scale, or a uniform quantile. Thin over scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latent_rewards.files import artefact
from latent_rewards.judge.fingerprint import tensors_hash
from latent_rewards.probes.examples import prompt_group
from latent_rewards.rewards.base import Reward, bounds_of, with_prompt_of

Method = Literal["affine", "platt", "temperature", "isotonic", "quantile"]
METHODS: tuple[Method, ...] = ("affine", "platt", "temperature", "isotonic", "quantile")


@dataclass(frozen=True)
class Calibration:
    """A fitted, monotone map of scores.

    Attributes:
        method: "affine" a s + b, "platt" sigmoid(a s + b), "temperature" sigmoid(s / T) for log-odds, "isotonic" and
            "quantile" a step or piecewise linear function.
        x: isotonic and quantile: (M,) increasing scores; otherwise (2,) slope and intercept.
        y: isotonic and quantile: (M,) values there; otherwise empty.
        groups: (G,) prompt groups it was fitted on, so that metrics can keep off them.
        facts: what it was fitted on, for the record.
    """

    method: Method
    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, scores: Sequence[float], targets: Sequence[float] | None = None, *, method: Method = "affine",
        prompts: Sequence[Any] = (),
    ) -> Calibration:  # fmt: skip
        """Fit on scores and what they should become.

        Args:
            scores: (N,) NaN rows are left out.
            targets: (N,) ratings (affine, isotonic) or 0/1 outcomes (platt, temperature, isotonic); not for quantile.
            method: see the class.
            prompts: (N,) prompts of the rows; metrics on them are refused by `check_unseen`.

        Raises:
            ValueError: unknown method, lengths that differ, fewer than 2 different scores, or one-class outcomes.
        """
        s = np.asarray(scores, dtype=float)
        t = np.asarray(targets if targets is not None else np.zeros(len(s)), dtype=float)
        _check(s, t, method, targets is None)
        keep = ~(np.isnan(s) | np.isnan(t))
        x, y = _FITS[method](s[keep], t[keep])
        groups = np.unique(np.array([prompt_group(p) for p in prompts], dtype=np.int64))
        return cls(method, x, y, groups, {"n": int(keep.sum())})

    def predict(self, scores: Sequence[float] | np.ndarray) -> np.ndarray:
        """(N,) calibrated scores; NaN stays NaN. Beyond the fitted range isotonic and quantile are constant."""
        s = np.asarray(scores, dtype=float)
        if self.method in ("isotonic", "quantile"):
            return np.where(np.isnan(s), np.nan, np.interp(s, self.x, self.y))
        line = self.x[0] * s + self.x[1]
        return line if self.method == "affine" else _sigmoid(line)

    def check_unseen(self, prompts: Sequence[Any]) -> None:
        """Raise ValueError if a prompt was used for the fit: metrics there would flatter."""
        both = np.isin([prompt_group(p) for p in prompts], self.groups)
        if both.any():
            raise ValueError(
                f"{int(both.sum())} of {len(prompts)} prompts were used to fit this calibration (first row "
                f"{int(np.flatnonzero(both)[0])}); measure on others, see split_prompts"
            )

    def save(self, folder: str | Path) -> Path:
        """Write calibration.safetensors and calibration.json."""
        about = {"method": self.method, "facts": self.facts}
        return artefact.save(folder, "calibration", about, {"x": self.x, "y": self.y, "groups": self.groups})

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: corrupt or foreign files.
        """
        with artefact.opened(folder, "calibration", "a calibration") as (raw, tensors):
            if raw.get("method") not in METHODS:
                raise ValueError(f"unknown method {raw.get('method')!r}; known are {METHODS}")
            x, y, groups = (tensors[k].numpy() for k in ("x", "y", "groups"))
            _check_arrays(raw["method"], x, y)
            return cls(raw["method"], x, y, groups, raw["facts"])


class CalibratedReward(Reward):
    """Any reward with its scores calibrated; scale, shift and clip apply after the calibration.

    Args:
        reward: the reward, with its own scale and shift left at 1 and 0.
        calibration: a fitted one, or the folder of one.
        **options: `name`, `scale`, `shift`, `clip`, `on_missing`; see `Reward`.
    """

    kind = "calibrated"

    def __init__(self, reward: Reward, calibration: Calibration | str | Path, **options: Any) -> None:
        self.reward, self.by_row = reward._as_part(), reward.by_row
        self.calibration = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        options.setdefault("name", f"{self.reward.__name__}-{self.calibration.method}")
        super().__init__(reward.judge, **with_prompt_of(reward, options))

    def options(self) -> dict[str, Any]:
        """What is calibrated, and the whole fitted map."""
        arrays = {"x": self.calibration.x, "y": self.calibration.y}
        hashed = tensors_hash({k: torch.from_numpy(np.asarray(v, dtype=float)) for k, v in arrays.items()})
        return {"reward": self.reward.facts, "method": self.calibration.method, "map": hashed}

    @property
    def score_range(self) -> tuple[float, float]:
        """The ends of the map, as far as the reward's bounds reach."""
        with np.errstate(invalid="ignore"):  # a slope of 0 on infinite ends
            low, high = np.sort(self.calibration.predict(bounds_of(self.reward)))
        return float(low), float(high)

    @property
    def inputs(self) -> tuple[str, ...]:
        """As the reward."""
        return self.reward.inputs

    def check_row(self, row: Mapping[str, Any]) -> None:
        """As the reward."""
        self.reward.check_row(row)

    def _read_together(self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]) -> float:
        return self.reward._read_together(prompts, completions, columns)

    def _score(
        self, prompts: list[Any], completions: list[Any], columns: Mapping[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rewards, facts = self.reward._rewards(prompts, completions, columns)
        return self.calibration.predict(rewards), facts


def split_prompts(prompts: Sequence[Any], *, share: float = 0.5, seed: int = 42) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for the fit and for the metrics; a prompt is on one side only.

    Raises:
        ValueError: fewer than two different prompts.
    """
    from sklearn.model_selection import GroupShuffleSplit

    groups = np.array([prompt_group(p) for p in prompts])
    if len(np.unique(groups)) < 2:
        raise ValueError("a split needs at least two different prompts")
    fit, rest = next(GroupShuffleSplit(1, train_size=share, random_state=seed).split(groups, groups=groups))
    return fit, rest


def _affine(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(s[:, None], t)
    return np.array([model.coef_[0], model.intercept_]), np.zeros(0)


def _platt(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    mean, scale = s.mean(), s.std()
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(((s - mean) / scale)[:, None], t)
    slope = model.coef_[0, 0] / scale
    return np.array([slope, model.intercept_[0] - slope * mean]), np.zeros(0)


def _temperature(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    scale = s.std()
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000, fit_intercept=False).fit((s / scale)[:, None], t)
    return np.array([model.coef_[0, 0] / scale, 0.0]), np.zeros(0)


def _isotonic(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(s, t)
    return np.asarray(model.X_thresholds_, dtype=float), np.asarray(model.y_thresholds_, dtype=float)


def _quantile(s: np.ndarray, _t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.unique(np.quantile(s, np.linspace(0, 1, min(1001, len(s)))))
    return x, np.array([np.mean(s < v) + 0.5 * np.mean(s == v) for v in x])


_FITS = {
    "affine": _affine, "platt": _platt, "temperature": _temperature, "isotonic": _isotonic, "quantile": _quantile,
}  # fmt: skip


def _check_arrays(method: str, x: np.ndarray, y: np.ndarray) -> None:
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("it holds NaN or infinite values")
    if method in ("isotonic", "quantile"):
        if x.ndim != 1 or x.shape != y.shape or not len(x) or (np.diff(x) < 0).any():
            raise ValueError(f"{method} needs increasing scores with one value each, got {x.shape} and {y.shape}")
    elif x.shape != (2,):
        raise ValueError(f"{method} needs slope and intercept, got {x.shape}")


def _check(s: np.ndarray, t: np.ndarray, method: str, no_targets: bool) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown calibration {method!r}; known are {list(METHODS)}")
    if len(s) != len(t):
        raise ValueError(f"{len(s)} scores but {len(t)} targets")
    if no_targets and method != "quantile":
        raise ValueError(f"calibration {method!r} needs targets")
    keep = ~(np.isnan(s) | np.isnan(t))
    if len(np.unique(s[keep])) < 2:
        raise ValueError("a calibration needs at least two different scores")
    if method in ("platt", "temperature") and set(np.unique(t[keep])) != {0.0, 1.0}:
        raise ValueError(f"calibration {method!r} needs outcomes 0 and 1, both present; found {np.unique(t[keep])[:5]}")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))
