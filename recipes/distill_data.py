"""Prompts and responses of the distillation recipe: read, sampled, kept between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import yaml
from accelerate import PartialState

from latent_rewards.data.prompts import load_prompts
from latent_rewards.files.keys import prompt_key
from latent_rewards.files.outputs import write_json
from latent_rewards.files.types import JsonObject, Messages, as_messages
from recipes.distill_models import sample_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipes.distill import DistillArguments

T = TypeVar("T")


def mapping(entry: object) -> JsonObject:
    """A mapping given as such or as YAML text."""
    value = yaml.safe_load(entry) if isinstance(entry, str) else entry
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, got {entry!r}")
    return dict(value)


def read_prompts(args: DistillArguments, seed: int) -> tuple[list[Messages], list[Messages]]:
    """Training and held-out prompts, as messages."""
    train, held = load_prompts(
        args.dataset_name, args.dataset_config, args.dataset_split, held_out=args.held_out, seed=seed
    )
    found = [as_messages(p) for p in train["prompt"]]
    return found[: args.limit], [as_messages(p) for p in held["prompt"]]


def kept(path: Path, make: Callable[[], T]) -> T:
    """JSON of `path`, made once: by every process, since training needs them all; what the first one made is kept."""
    state = PartialState()
    if not path.is_file():
        found = make()
        if state.is_main_process:
            write_json(path, found)
    state.wait_for_everyone()
    return json.loads(path.read_text(encoding="utf-8"))


def respond(
    args: DistillArguments,
    m: dict[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Messages],
    tokens: int,
    seed: int,
    what: str,
) -> dict[str, list[str | None]]:
    """Every teacher's response to every prompt; an empty one counts as none."""
    return {
        name: [
            text or None
            for text in sample_responses(
                model, tokenizer, prompts, max_new_tokens=tokens, temperature=args.responses_temperature, seed=seed,
                label=f"{name}, {what}",
            )
        ]
        for name, model in m.items()
    }  # fmt: skip


def given_responses(
    path: str, names: list[str], prompts: list[Messages]
) -> tuple[dict[str, list[str | None]], np.ndarray | None]:
    """What a file holds, in the order of the prompts.

    Returns:
        Responses by teacher, None where it has none; and (P, M) gold scores, NaN where unknown, or None without any.

    Raises:
        ValueError: a prompt that the file lacks altogether.
    """
    with Path(path).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    found = {prompt_key(as_messages(row["prompt"])): row for row in lines}
    keys = [prompt_key(p) for p in prompts]
    lacking = [p for p, key in zip(prompts, keys, strict=True) if key not in found]
    if lacking:
        raise ValueError(f"{path} lacks {len(lacking)} of {len(prompts)} training prompts, e.g. {str(lacking[0])[:80]}")
    rows = [found[key] for key in keys]
    texts = {name: [row["responses"].get(name) or None for row in rows] for name in names}
    gold = np.array([[(row.get("gold") or {}).get(name) for name in names] for row in rows], dtype=float)
    return texts, None if np.isnan(gold).all() else gold
