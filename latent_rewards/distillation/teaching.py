"""A trainer's teachers: loaded, named in its batches, checked against its student, and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import DistillationTrainer
from trl.experimental.gkd import GKDTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection

from latent_rewards.distillation.loss import LossParts, distillation_loss
from latent_rewards.distillation.mixture import TeacherStates
from latent_rewards.distillation.options import LossOptions
from latent_rewards.distillation.teachers import (
    backbone_states,
    check_head,
    check_teacher,
    head_of,
    pack_teacher,
    teacher_columns,
)
from latent_rewards.distillation.trainer_options import Inputs
from latent_rewards.engine.loading import resolve_model
from latent_rewards.engine.pretrained import load_causal_lm
from latent_rewards.files.types import JsonObject, Row

if TYPE_CHECKING:
    from transformers import (
        DataCollator,
        PreTrainedModel,
    )


class TeacherCollator:
    """A collator that adds `teacher_weights` (B, M) and `loss_weight` (B,) to another's batch.

    Where rows have `messages`, `prompt` and `completion` are hidden from it: TRL's would take `prompt` for rendered
    text.
    """

    def __init__(self, collator: DataCollator, names: Sequence[str]) -> None:
        self.collator, self.names = collator, list(names)

    def __call__(self, rows: list[Row]) -> Inputs:
        """The batch."""
        weights, scale = teacher_columns(rows, self.names)
        hidden = ("prompt", "completion")
        plain = [{k: v for k, v in r.items() if k not in hidden} if r.get("messages") is not None else r for r in rows]
        return self.collator(plain) | {"teacher_weights": weights, "loss_weight": scale}


class _Teachers:
    """The trainer's teachers, checked against its student, and how a batch is read with them."""

    def __init__(
        self,
        trainer: GKDTrainer | DistillationTrainer,
        models: dict[str, PreTrainedModel],
        options: LossOptions,
        tokenizers: Mapping[str, PreTrainedTokenizerBase] | None,
    ) -> None:
        self.trainer, self.options = trainer, options
        self.redirect = _ForwardRedirection()
        first = next(iter(models))
        self.wrapped = {first: trainer.teacher_model}
        for name, model in list(models.items())[1:]:
            if trainer.is_deepspeed_enabled:
                self.wrapped[name] = prepare_deepspeed(model, trainer.accelerator)
            else:
                self.wrapped[name] = trainer.accelerator.prepare_model(model, evaluation_mode=True)
        student = trainer.accelerator.unwrap_model(trainer.model)
        for name, model in models.items():
            own, other = trainer.processing_class, (tokenizers or {}).get(name)
            pair = (own, other) if other is not None and isinstance(own, PreTrainedTokenizerBase) else None
            check_teacher(student, model, name, tokenizers=pair)
        if not trainer.is_deepspeed_enabled:
            for name, model in {"student": student, **models}.items():
                check_head(model, name)

    def read(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, weights_BM: Tensor
    ) -> tuple[list[TeacherStates], Tensor]:
        """Each teacher's states at the kept positions of its own rows, and (N, M) weights of the positions."""
        rows_N = keep.nonzero()[:, 0]
        found = []
        for m, (name, wrapped) in enumerate(self.wrapped.items()):
            model = self.trainer.accelerator.unwrap_model(wrapped).eval()
            asked_B = weights_BM[:, m] > 0
            states = None
            if asked_B.any() or self.trainer.is_deepspeed_enabled:  # ZeRO-3 gathers weights on all ranks together
                rows = asked_B if asked_B.any() else torch.ones_like(asked_B)
                with torch.no_grad():
                    given = (input_ids[rows], attention_mask[rows])
                    hidden = self.redirect(wrapped, model, backbone_states, model, *given)
                states = hidden[:, :-1][keep[rows]] if asked_B.any() else None
            found.append(pack_teacher(states, asked_B[rows_N], head_of(model), name))
        return found, weights_BM[rows_N]

    def loss(
        self, student: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, weights_BM: Tensor,
        scale_B: Tensor, num_items: Tensor | int | None,
    ) -> LossParts:  # fmt: skip
        """The loss of a batch; `keep` (B, T - 1) marks the positions that predict a completion token."""
        hidden = backbone_states(student, input_ids, attention_mask)[:, :-1][keep]
        teachers, weights = self.read(input_ids, attention_mask, keep, weights_BM)
        return distillation_loss(
            hidden, head_of(student), teachers, options=self.options, teacher_weights=weights,
            position_weights=scale_B[keep.nonzero()[:, 0]], labels=input_ids[:, 1:][keep], num_items=num_items,
        )  # fmt: skip

    def log(self, parts: tuple[Tensor, ...]) -> None:
        """Divergence, entropy weight and unusable positions, into the trainer's metrics."""
        tokens, dropped, divergence, teacher_entropy = parts
        assert self.trainer.model is not None
        mode = "train" if self.trainer.model.training else "eval"
        gathered = self.trainer.accelerator.gather(
            torch.stack([tokens, dropped, divergence * tokens, teacher_entropy * tokens])[None]
        ).sum(0)
        metrics, total = self.trainer._metrics[mode], gathered[0].clamp(min=1)
        metrics["distillation/divergence"].append((gathered[2] / total).item())
        metrics["distillation/unusable"].append((gathered[1] / (gathered[0] + gathered[1]).clamp(min=1)).item())
        if self.options.entropy_temperature is not None:
            metrics["distillation/teacher_entropy"].append((gathered[3] / total).item())


def load_teachers(
    teachers: Mapping[str, PreTrainedModel | str], init_kwargs: Mapping[str, object] | None = None
) -> dict[str, PreTrainedModel]:
    """Teachers by name, loaded where they are given as hub ids, folders or "embedded".

    Raises:
        ValueError: none, or a checkpoint that does not hold a whole causal LM.
    """
    if not teachers:
        raise ValueError("need at least one teacher")
    options: JsonObject = {"dtype": "auto", **(init_kwargs or {})}
    return {
        name: load_causal_lm(resolve_model(model), options) if isinstance(model, str) else model
        for name, model in teachers.items()
    }
