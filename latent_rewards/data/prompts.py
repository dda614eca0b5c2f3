"""Prompts to train a policy on, and some that are kept out of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latent_rewards.data import open_ended

if TYPE_CHECKING:
    from datasets import Dataset


def load_prompts(
    name: str, config: str | None = None, split: str = "train", *, held_out: int, seed: int
) -> tuple[Dataset, Dataset]:
    """Training and held-out prompts: rows of `prompt` (text or messages) and any columns that the judge prompt uses.

    Args:
        name: "open_ended" (built in), a .jsonl, .json, .parquet or .csv file, or a hub dataset.
        config: of a hub dataset.
        split: of a hub dataset.
        held_out: prompts kept out of training.
        seed: of that split.

    Raises:
        ValueError: no column `prompt`, or `held_out` does not leave two on one side and one on the other.
    """
    from datasets import Dataset, load_dataset

    reader = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}.get(Path(name).suffix)
    if name == "open_ended":
        data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in open_ended()])
    elif reader is not None:
        data = load_dataset(reader, data_files=name, split="train")
    else:
        data = load_dataset(name, config, split=split)
    if "prompt" not in data.column_names:
        raise ValueError(f"{name}: expected a column 'prompt' (text or messages), found {data.column_names}")
    if not 2 <= held_out < len(data):
        raise ValueError(f"held_out must be at least 2 and below the {len(data)} prompts, got {held_out}")
    parts = data.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]
