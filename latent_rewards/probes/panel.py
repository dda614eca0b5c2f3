"""A panel: readings of several questions put together by a small regression, with weights that can be read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latent_rewards.files.atomic import write_text
from latent_rewards.files.seal import sealed, unsealed
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.probes.probe import prompt_yaml
from latent_rewards.probes.questions import LENGTH, STATISTICS, Feature, Question

_FILE = "panel.json"


@dataclass(frozen=True)
class Panel:
    """A fitted panel. `Panel.load(folder)`, `panel.save(folder)`.

    score = bias + sum_f w_f (x_f - m_f), higher is better; after a logistic fit a difference of two scores is the
    log-odds that the first completion is preferred.

    Attributes:
        questions: what is asked.
        features: F of them.
        weights: (F,) by unit of the feature.
        location: (F,) what is taken off each feature, its mean over the training rows.
        scales: (F,) its standard deviation there; weights times scales say what each is worth.
        bias: of the score.
        judge: name of the judge.
        revision: its hub commit or weights hash; None where the judge tells none, as engines do.
        training: data, settings and figures, for the card.
    """

    questions: tuple[Question, ...]
    features: tuple[Feature, ...]
    weights: np.ndarray
    location: np.ndarray
    scales: np.ndarray
    bias: float
    judge: str
    revision: str | None = None
    training: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [q.name for q in self.questions]
        if len(set(names)) < len(names):
            raise ValueError(f"two questions of one name: {names}")
        for f in self.features:
            fits = f.statistic in STATISTICS and f.question in names if f.question else f.statistic == LENGTH
            if not fits:
                raise ValueError(f"feature {f.name!r} is of no question of this panel {names}, or unknown")
        for name in ("weights", "location", "scales"):
            found = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, found)
            if found.shape != (len(self.features),) or not np.isfinite(found).all():
                raise ValueError(f"{name} must be {len(self.features)} finite numbers, got shape {found.shape}")
        if not self.features or not math.isfinite(self.bias):
            raise ValueError("a panel needs features, and a finite bias")

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(B,) scores of (B, F) features; NaN where a feature is NaN."""
        return self.bias + (values - self.location) @ self.weights

    @property
    def prompt(self) -> JudgePrompt:
        """That of the first question, by which thoughts are treated and lengths counted."""
        return self.questions[0].prompt

    @property
    def facts(self) -> JsonObject:
        """All that scores depend on besides the judge, as plain data."""
        return {
            "questions": [[q.name, q.prompt.hash, q.criterion] for q in self.questions],
            "features": [f.name for f in self.features], "weights": self.weights.tolist(),
            "location": self.location.tolist(), "bias": self.bias,
        }  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write panel.json (weights by name), the prompts, and a card (README.md) into `folder`."""
        from latent_rewards.probes.panel_card import panel_card

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        files = {q.prompt.hash: f"prompt-{q.prompt.name}-{q.prompt.hash[:8]}.yaml" for q in self.questions}
        for q in self.questions:
            write_text(path / files[q.prompt.hash], prompt_yaml(q.prompt))
        rows = zip(self.features, self.weights, self.location, self.scales, strict=True)
        raw = {
            "format": 1, "judge": self.judge, "revision": self.revision, "bias": self.bias,
            "questions": [
                {"name": q.name, "prompt": q.prompt.name, "prompt_hash": q.prompt.hash, "file": files[q.prompt.hash]}
                | ({"criterion": q.criterion} if q.criterion else {}) | ({"sign": q.sign} if q.sign != 1 else {})
                for q in self.questions
            ],
            "features": [
                {**dataclasses.asdict(f), "weight": float(w), "mean": float(m), "sd": float(s), "per_sd": float(w * s)}
                for f, w, m, s in rows
            ],
            "training": self.training,
        }  # fmt: skip
        write_text(path / _FILE, json.dumps(sealed(raw), indent=1))
        write_text(path / "README.md", panel_card(self))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Panel:
        """Read a panel that `save` wrote.

        Raises:
            FileNotFoundError: no panel there.
            ValueError: a file is corrupt, edited, or of something else; the message starts with the folder.
        """
        path = Path(folder)
        if not (path / _FILE).is_file():
            raise FileNotFoundError(f"no {_FILE} in {path}; give a folder written by `latent-rewards panel train`")
        try:
            raw = unsealed(json.loads((path / _FILE).read_text(encoding="utf-8")))
            if raw.get("format") != 1:
                raise ValueError(f"expected a panel of format 1, got {raw.get('format')!r}")
            questions = tuple(_question(path, each) for each in raw["questions"])
            features = tuple(Feature(f["question"], f["statistic"]) for f in raw["features"])
            columns = [np.array([f[k] for f in raw["features"]], dtype=float) for k in ("weight", "mean", "sd")]
            w, m, sd = columns
            about = (float(raw["bias"]), raw["judge"], raw["revision"], raw["training"])
            return cls(questions, features, w, m, sd, *about)
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as err:
            raise ValueError(f"{path}: not a panel: {err}") from err


def _question(path: Path, each: Mapping[str, Any]) -> Question:
    prompt = JudgePrompt.load(path / Path(each["file"]).name)
    if prompt.hash != each["prompt_hash"]:
        raise ValueError(
            f"prompt {each['file']} has hash {prompt.hash}, but the panel was fitted on {each['prompt_hash']}"
        )
    return Question(each["name"], prompt, each.get("criterion", ""), each.get("sign", 1))
