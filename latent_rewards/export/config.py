"""The config.json of an export."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_rewards.export.checkpoints import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def classifier_config(source: Source, layers: int, outputs: Sequence[str]) -> PretrainedConfig:
    """The judge's config cut to `layers`, with the classes of a sequence-classification model named `outputs`.

    Raises:
        ValueError: a model type without such a class in transformers, or a layer that it does not have.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    config: PretrainedConfig = copy.deepcopy(source.config)
    if config.model_type not in CLASSES:
        raise ValueError(f"transformers has no sequence-classification class for model type {config.model_type!r}")
    if not 1 <= layers <= source.n_layers:
        raise ValueError(f"{config.model_type} judge has layers 1..{source.n_layers}; layer {layers} was asked for")
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == source.n_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers
    config.architectures = [CLASSES[config.model_type]]
    config.id2label = dict(enumerate(outputs))
    config.label2id = {name: i for i, name in enumerate(outputs)}
    return config


def save_config(config: PretrainedConfig, folder: Path) -> None:
    """Write config.json, with the rotary base where transformers before 5 and engines built on it look for it.

    A model that caps its attention's logits (Gemma 2) is asked for eager attention: SDPA leaves the cap out in silence.

    Those read `rope_theta` and `rope_scaling`, and without them take a base of 10,000 in silence; transformers 5 writes
    `rope_parameters` alone and reads either.
    """
    config.save_pretrained(folder)
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved.get("attn_logit_softcapping"):  # transformers up to 5.19 at least runs SDPA by default, without the cap
        saved["_attn_implementation"] = "eager"
        path.write_text(json.dumps(saved, indent=2, sort_keys=True), encoding="utf-8")
    rope = saved.get("rope_parameters") or {}
    if "rope_theta" in rope:  # the same for all layers
        saved["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            saved["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        path.write_text(json.dumps(saved, indent=2, sort_keys=True), encoding="utf-8")
