"""Probes: small heads on a frozen judge's hidden states. Score, save, load and publish."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
import yaml
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from torch import Tensor

from latent_rewards.files import artefact
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.hf import Judge
from latent_rewards.judge.prompts import JudgePrompt

logger = logging.getLogger(__name__)

Architecture = Literal["linear", "mlp", "orthogonal"]
_FILES = ("probe.json", "probe.safetensors", "prompt.yaml")
_TENSORS: dict[str, tuple[str, ...]] = {
    "linear": ("weight", "bias"),
    "mlp": ("weight", "bias", "out_weight", "out_bias"),
    "orthogonal": ("weight", "bias"),
}


@dataclass(frozen=True)
class ProbeConfig:
    """What a probe belongs to and how it was made.

    Attributes:
        judge: name of the judge.
        revision: its hub commit or weights hash.
        prompt_hash: hash of the judge prompt.
        layers: layers whose states are read, side by side, 1..L.
        width: hidden size D of one layer.
        lens: "normed" or "raw".
        architecture: "linear", "mlp" or "orthogonal".
        outputs: names of the outputs; one, or one per aspect.
        objective: loss it was trained with.
        training: data, settings and figures, for the model card.
        format: version of these files.
    """

    judge: str
    revision: str
    prompt_hash: str
    layers: tuple[int, ...]
    width: int
    lens: Literal["raw", "normed"] = "normed"
    architecture: Architecture = "linear"
    outputs: tuple[str, ...] = ("score",)
    objective: str = "bce"
    training: JsonObject = field(default_factory=dict)
    format: int = 1


class Probe(ModelHubMixin):
    """A trained head. `Probe.load(folder)`, `Probe.from_pretrained("user/probe")`, `probe.push_to_hub("user/probe")`.

    Args:
        config: what it belongs to.
        tensors: its weights, standardisation folded in. linear: g = W h + b. mlp: g = V relu(W h + b) + c. orthogonal:
            g = sum_i s_i g_i with s = softmax(g_1..g_n) and g_i = w_i h + b_i, the w_i mutually orthogonal.
        prompt: the judge prompt.

    Raises:
        ValueError: tensors that do not fit the config, or that are not finite.

    Source: Girrbach et al. 2025, eq. 3-5 and appendix B (arXiv 2509.24678).
    """

    def __init__(self, config: ProbeConfig, tensors: Mapping[str, Tensor], prompt: JudgePrompt) -> None:
        self.config, self.prompt = config, prompt
        self.tensors = {k: v.detach().float().contiguous() for k, v in tensors.items()}
        _validate(config, self.tensors, prompt)

    def __call__(self, states: Tensor) -> Tensor:
        """Scores of states.

        Args:
            states: (B, len(layers) * D), layers side by side.

        Returns:
            (B, A) one column per output; NaN where a state is NaN.
        """
        return head_scores(states.float(), self.tensors, self.config.architecture)

    def of(self, hidden: Mapping[int, Tensor]) -> Tensor:
        """(B, A) scores from a reading's `hidden`.

        Raises:
            ValueError: the states' width is not the one this probe was trained on.
        """
        states = torch.cat([hidden[layer] for layer in self.config.layers], dim=-1)
        expected = self.config.width * len(self.config.layers)
        if states.shape[-1] not in (expected, 0):
            raise ValueError(
                f"this judge's hidden size is {hidden[self.config.layers[0]].shape[-1]}, but the probe was trained on "
                f"{self.config.judge!r} with {self.config.width}; use it with its own judge"
            )
        return self(states) if states.shape[-1] else torch.zeros(len(states), len(self.config.outputs))

    def save(self, folder: str | Path) -> Path:
        """Write probe.json, probe.safetensors, prompt.yaml and a model card (README.md) into `folder`."""
        from latent_rewards.probes.card import model_card

        path = artefact.save(folder, "probe", dataclasses.asdict(self.config), self.tensors)
        (path / "prompt.yaml").write_text(prompt_yaml(self.prompt), encoding="utf-8")
        (path / "README.md").write_text(model_card(self), encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Read a probe from a folder, or the shipped one: "embedded".

        Raises:
            FileNotFoundError: no probe there.
            ValueError: a file is corrupt, cut short, or of something else; the message starts with it.
        """
        path = shipped_folder() / str(folder) if str(folder) in shipped_probes() else Path(folder)
        missing = [f for f in _FILES if not (path / f).is_file()]
        if missing:
            raise FileNotFoundError(
                f"no probe in {path} ({', '.join(missing)} missing); shipped probes are {shipped_probes()}, or give a "
                "folder written by Probe.save"
            )
        with artefact.opened(path, "probe", "a probe") as (about, tensors):
            fields: JsonObject = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
            return cls(ProbeConfig(**fields), tensors, JudgePrompt.load(path / "prompt.yaml"))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None = None, cache_dir: str | Path | None = None,
        force_download: bool = False, token: str | bool | None = None, local_files_only: bool = False, **_: object,
    ) -> Probe:  # fmt: skip
        if Path(model_id).is_dir() or model_id in shipped_probes():
            return cls.load(model_id)
        fetch = functools.partial(
            hf_hub_download, model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
            token=token, local_files_only=local_files_only,
        )  # fmt: skip
        files = [fetch(f) for f in _FILES]
        return cls.load(Path(files[0]).parent)

    def generate_model_card(self, *args: object, **kwargs: object) -> ModelCard:
        """The card that `save` writes; called by `push_to_hub`."""
        from latent_rewards.probes.card import model_card

        return ModelCard(model_card(self))


def head_scores(states: Tensor, tensors: Mapping[str, Tensor], architecture: str) -> Tensor:
    """(B, A) scores of states (B, P) by a head's tensors; the equations are those of `Probe`."""
    linear = states @ tensors["weight"].T + tensors["bias"]
    if architecture == "mlp":
        return torch.relu(linear) @ tensors["out_weight"].T + tensors["out_bias"]
    return (torch.softmax(linear, -1) * linear).sum(-1, keepdim=True) if architecture == "orthogonal" else linear


class Trained(Protocol):
    """What was trained on a judge: a probe's config, or a panel."""

    @property
    def judge(self) -> str:
        """Name of that judge."""
        ...

    @property
    def revision(self) -> str | None:
        """Its hub commit or weights hash; None where it told none."""
        ...


def check_revision(judge: Judge, trained: Trained, *, strict: bool, what: str = "probe") -> None:
    """Compare the judge's revision with that of what was trained; loads the judge.

    Raises:
        ValueError: they differ, and `strict`; names both.
    """
    found = judge.revision
    if found is None or trained.revision is None:
        logger.warning(
            "judge %r has revision %s, and the %s was trained on %r with revision %s: whether they are the same cannot "
            "be told", judge.name, found, what, trained.judge, trained.revision,
        )  # fmt: skip
    elif found != trained.revision:
        message = (
            f"judge {judge.name!r} has revision {found}, but the {what} was trained on {trained.judge!r} with revision "
            f"{trained.revision}; use that judge, train the {what} anew, or pass strict=False if the weights differ "
            "only in precision"
        )
        if strict:
            raise ValueError(message)
        logger.warning("%s", message)


def shipped_folder() -> Path:
    """Where the probes that come with the package lie."""
    return Path(__file__).parents[1] / "shipped"


def shipped_probes() -> list[str]:
    """Names of the probes that come with the package."""
    return sorted(p.parent.name for p in shipped_folder().glob("*/probe.json"))


def prompt_yaml(prompt: JudgePrompt) -> str:
    """A prompt file with the content of `prompt`."""
    keys = ("name", "kind", "source", "system", "body", "prefill", "pattern", "target")
    raw: JsonObject = {k: getattr(prompt, k) for k in keys if getattr(prompt, k)}
    raw |= {"completion": prompt.completion, "optional": list(prompt.optional)}
    if prompt.thought_tags:
        raw["thought_tags"] = [list(pair) for pair in prompt.thought_tags]
    raw |= {k: v for k in ("reasoning", "unfinished", "opened") if (v := getattr(prompt, k)) != getattr(JudgePrompt, k)}
    if prompt.scale:
        raw["scale"] = list(prompt.scale)
    if prompt.labels:
        raw["labels"] = dict(zip(prompt.labels.names, prompt.labels.values, strict=True))
        raw["spellings"] = dict(zip(prompt.labels.names, map(list, prompt.labels.spellings), strict=True))
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _validate(config: ProbeConfig, tensors: Mapping[str, Tensor], prompt: JudgePrompt) -> None:
    if config.architecture not in _TENSORS:
        raise ValueError(f"unknown architecture {config.architecture!r}; known are {sorted(_TENSORS)}")
    if set(tensors) != set(_TENSORS[config.architecture]):
        raise ValueError(
            f"a {config.architecture} probe has tensors {_TENSORS[config.architecture]}, these are {sorted(tensors)}"
        )
    inputs, outputs = config.width * len(config.layers), len(config.outputs)
    last = tensors["out_weight"] if config.architecture == "mlp" else tensors["weight"]
    if tensors["weight"].dim() != 2 or tensors["weight"].shape[1] != inputs:
        raise ValueError(f"weights of shape {tuple(tensors['weight'].shape)} do not read {inputs} inputs")
    if config.architecture != "orthogonal" and last.shape[0] != outputs:
        raise ValueError(f"{last.shape[0]} outputs in the weights but names {list(config.outputs)}")
    bad = sorted(k for k, v in tensors.items() if not torch.isfinite(v).all())
    if bad:
        raise ValueError(f"weights {bad} hold NaN or infinite values")
    if prompt.hash != config.prompt_hash:
        raise ValueError(
            f"prompt {prompt.name!r} has hash {prompt.hash}, but the probe was trained on {config.prompt_hash}"
        )
