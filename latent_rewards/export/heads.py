"""A linear probe, a verifier or a rating head as an ordinary sequence-classification checkpoint, without our code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_rewards.export.checkpoints import Source, write_shards
from latent_rewards.export.config import classifier_config, save_config
from latent_rewards.export.template import judge_template, judge_tokenizer, same_tokens, save_tokenizer
from latent_rewards.judge.hf import HFJudge
from latent_rewards.judge.labels import Labels
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.probes.probe import Probe, check_revision

logger = logging.getLogger(__name__)


def export_probe(
    judge: HFJudge, probe: Probe, folder: str | Path, *, strict: bool = True, shard_bytes: int = 2 << 30
) -> Path:
    """Write the judge cut to the probe's layer, with the probe as its `score` head.

    Args:
        judge: the probe's judge.
        probe: linear, on one layer, through the normed lens.
        folder: where the checkpoint goes; must be empty or new.
        strict: as for `ProbeReward`: whether another judge revision is an error; False logs a warning.
        shard_bytes: most bytes of one file; no more than one file is in memory.

    Returns:
        `folder`. The probe's bias stays in config.json under `latent_rewards.bias`: a score head has none, so the
        exported score is the probe's minus that constant.

    Raises:
        ValueError: a probe that one linear layer cannot stand for, another judge, or a model type without a
            sequence-classification class.
    """
    config = probe.config
    for found, wanted, what in (
        (config.architecture, "linear", "architecture"),
        (config.lens, "normed", "lens"),
        (len(config.layers), 1, "number of layers"),
    ):
        if found != wanted:
            raise ValueError(f"only a probe with {what} {wanted!r} can be exported; this one has {found!r}")
    check_revision(judge, config, strict=strict)
    head = probe.tensors["weight"], probe.tensors["bias"].tolist()
    return _export(
        judge, probe.prompt, folder, head, config.outputs, kind="probe", layer=config.layers[0], shard_bytes=shard_bytes
    )


def export_verifier(
    judge: HFJudge, folder: str | Path, *, prompt: str | Path | JudgePrompt = "verifier", shard_bytes: int = 2 << 30
) -> Path:
    """Write the whole judge with `W[yes] - W[no]` of its LM head as `score` head: the log-odds of yes.

    One spelling stands for each answer ("Yes", "No"); other spellings' mass, which `VerifierReward` adds, is left out.

    Raises:
        ValueError: the prompt's labels are not yes (1) and no (0), take several tokens, or the judge caps its logits.
    """
    loaded = JudgePrompt.load(prompt)
    if loaded.labels is None or sorted(loaded.labels.values) != [0.0, 1.0]:
        raise ValueError(f"a verifier needs two labels with values 0 and 1; prompt {loaded.name!r} has {loaded.labels}")
    source = Source(judge)
    rows, bias = _head_rows(source, _label_tokens(judge, loaded, loaded.labels))
    yes, no = loaded.labels.values.index(1.0), loaded.labels.values.index(0.0)
    head = (rows[yes] - rows[no])[None], [float(bias[yes] - bias[no])]
    return _export(judge, loaded, folder, head, ("log_odds",), kind="verifier", shard_bytes=shard_bytes, source=source)


def export_labels(
    judge: HFJudge, folder: str | Path, *, prompt: str | Path | JudgePrompt, shard_bytes: int = 2 << 30
) -> Path:
    """Write the judge with the LM head's rows of K labels: softmax of the K logits is the label distribution.

    Raises:
        ValueError: a label takes several tokens, or the judge caps its logits.
    """
    loaded = JudgePrompt.load(prompt)
    if loaded.labels is None:
        raise ValueError(f"prompt {loaded.name!r} has no labels")
    source = Source(judge)
    rows, bias = _head_rows(source, _label_tokens(judge, loaded, loaded.labels))
    head = rows, bias.tolist()
    return _export(
        judge, loaded, folder, head, loaded.labels.names, kind="labels", shard_bytes=shard_bytes, source=source
    )


def _export(
    judge: HFJudge,
    prompt: JudgePrompt,
    folder: str | Path,
    head: tuple[Tensor, list[float]],
    outputs: Sequence[str],
    *,
    kind: str,
    layer: int | None = None,
    shard_bytes: int,
    source: Source | None = None,
) -> Path:
    path = Path(folder)
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty; give a new folder")
    source = source or Source(judge)
    tokenizer = judge_tokenizer(judge.encoder.tokenizer, judge_template(judge.encoder, prompt))
    config = classifier_config(source, layer or source.n_layers, outputs)
    config.pad_token_id = config.get_text_config().pad_token_id = _pad(tokenizer)
    config.latent_rewards = {
        "bias": head[1], "kind": kind, "judge": judge.name, "revision": source.revision, "prompt": prompt.name,
        "prompt_hash": prompt.hash, "layer": layer or source.n_layers,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    write_shards(path, source.decoder_tensors(layer or source.n_layers), {"score.weight": head[0]}, shard_bytes)
    save_config(config, path)
    save_tokenizer(tokenizer, path)
    if not same_tokens(judge, prompt, path):
        logger.warning(
            "%s: this tokenizer cannot keep our words apart from the judged text, so scores differ slightly from ours",
            path,
        )
    return path


def _pad(tokenizer: Any) -> int:
    """A padding token that never ends a judge prompt."""
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if token is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token)
            return int(token)
    raise ValueError("the judge's tokenizer has no token that could serve as padding; set tokenizer.pad_token")


def _label_tokens(judge: HFJudge, prompt: JudgePrompt, labels: Labels) -> list[int]:
    """One token id per label: of its capitalised spelling if that is one token, else of the first that is."""
    out = []
    for name, spellings in zip(labels.names, labels.spellings, strict=True):
        ordered = sorted(spellings, key=lambda text: text != text.strip().capitalize())
        single = [path[0] for text in ordered for path in judge.encoder._spellings(text) if len(path) == 1]
        if not single:
            raise ValueError(
                f"label {name!r} of prompt {prompt.name!r} takes several tokens in this tokenizer; a score head reads "
                "one position, so use a prompt whose labels are single tokens (ratings 0 to 9)"
            )
        out.append(single[0])
    return out


def _head_rows(source: Source, ids: list[int]) -> tuple[Tensor, Tensor]:
    """(K, D) rows and (K,) biases of the LM head, with what the family does to its logits."""
    config = source.config.get_text_config()
    if getattr(config, "final_logit_softcapping", None):
        raise ValueError("this judge caps its logits, which a linear head cannot do; export a probe instead")
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    rows, bias = source.head_rows(ids)
    return rows.float() * scale, (torch.zeros(len(ids)) if bias is None else bias.float() * scale)
