"""What is handed on to TRL's trainers as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latent_rewards.files.types import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from peft import PeftConfig
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import (
        BitsAndBytesConfig,
        DataCollator,
        EvalPrediction,
        TrainerCallback,
    )

Inputs = dict[str, Tensor]


class TrainerOptions(TypedDict, total=False):
    """Arguments that go to TRL's trainers as they are."""

    train_dataset: Dataset | None
    eval_dataset: Dataset | dict[str, Dataset] | None
    processing_class: PreTrainedTokenizerBase
    callbacks: list[TrainerCallback] | None
    optimizers: tuple[Optimizer, LambdaLR]
    peft_config: PeftConfig | None


class GKDOptions(TrainerOptions, total=False):
    """Those of `GKDTrainer`."""

    data_collator: DataCollator | None
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None
    formatting_func: Callable[[Row], str] | None


class DistillationOptions(TrainerOptions, total=False):
    """Those of `DistillationTrainer`."""

    quantization_config: BitsAndBytesConfig | None
    tools: list[Callable[..., object]] | None
