"""TRL's distillation trainers with several teachers per data set, entropy weights and judge weights.

`MultiTeacherGKDTrainer` learns on the responses given, on the student's own (`lmbda`), or both;
`MultiTeacherDistillationTrainer` on the student's own, with vLLM and all else that TRL's stable trainer has. Both
change the loss and nothing else: with one teacher and default options they give their parents' losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch
import trl
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from latent_rewards.distillation.options import LossOptions
from latent_rewards.distillation.teachers import (
    check_teacher,
    teacher_columns,
)
from latent_rewards.distillation.teaching import TeacherCollator, _Teachers, load_teachers
from latent_rewards.distillation.trainer_options import DistillationOptions, GKDOptions, Inputs
from latent_rewards.files.types import JsonObject, Row

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
    )


CHECKED_AGAINST = "1.16"


def check_trl() -> None:
    """Whether the hooks below were checked against the TRL that is installed.

    Raises:
        ImportError: they were not; they override private methods.
    """
    found = Version(trl.__version__)
    if f"{found.major}.{found.minor}" != CHECKED_AGAINST:
        raise ImportError(f"the distillation trainers are checked against TRL {CHECKED_AGAINST}, found {found}")


def _prepare(
    model: PreTrainedModel | str, teachers: Mapping[str, PreTrainedModel | str], args: GKDConfig | DistillationConfig
) -> dict[str, PreTrainedModel]:
    """The teachers, loaded, and refused here where they cannot teach the student; `args` has nothing left to load."""
    check_trl()
    kwargs = args.teacher_model_init_kwargs
    assert not isinstance(kwargs, str)  # TRL has parsed it
    models = load_teachers(teachers, kwargs)
    args.teacher_model_init_kwargs = None
    for name, teacher in models.items():
        if not isinstance(model, str):
            check_teacher(model, teacher, name)
    return models


class MultiTeacherGKDTrainer(GKDTrainer):
    """TRL's GKDTrainer with several teachers, and our loss in chunks.

    Rows have `messages` (or TRL's other forms) and name their teachers: `teacher_id`, or `teacher_weights` for a
    mixture; `loss_weight` is optional. Only the teachers that a row names are run on it. On-policy rows (`lmbda`) keep
    their teachers.

    The loss is the mean over the tokens of all processes and accumulation steps, so that N processes take the step of
    one with the same rows (`normalize="batch_mean"` aside), as with TRL's SFTTrainer. In one process this is the
    parent's loss; in N the parent's is N times smaller (it divides by everyone's tokens, and DDP averages once more).
    As in the parent, the tokens counted are those of the responses given, also where the student's own replace them.

    Args:
        model: student, as in `GKDTrainer`.
        teachers: name -> causal LM of the student's vocabulary (model, hub id, folder, or "embedded").
        args: `GKDConfig`; its `beta` is used unless `loss` is given.
        loss: see `LossOptions`; its `temperature` is the divergence's. (GKDTrainer samples with `args.temperature` and
            compares at 1, which stays the default here.)
        tokenizers: name -> tokenizer of a teacher, to check that ids mean the same tokens.
        **options: as in `GKDTrainer`.

    Raises:
        TeacherError: a teacher whose distribution cannot be compared.
        ValueError: no teacher, or `seq_kd` with several teachers.
        ImportError: a TRL that this was not checked against.

    Source: Agarwal et al. 2024 (GKD, arXiv 2306.13649); Su et al. 2023 (ER-KD, arXiv 2311.13621).
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        teachers: Mapping[str, PreTrainedModel | str],
        args: GKDConfig,
        *,
        loss: LossOptions | None = None,
        tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
        **options: Unpack[GKDOptions],
    ) -> None:
        if options.get("processing_class") is None:
            raise ValueError("give `processing_class`, the student's tokenizer")
        if args.seq_kd and len(teachers) > 1:
            raise ValueError("seq_kd has one teacher; with several give their chosen responses as `messages`")
        models = _prepare(model, teachers, args)
        super().__init__(model, next(iter(models.values())), args, **options)
        self.data_collator = TeacherCollator(self.data_collator, list(models))
        self.teachers = _Teachers(self, models, loss or LossOptions(beta=args.beta), tokenizers)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """As the parent's, from states and heads; the second output is empty, since there are no logits."""
        student = self.accelerator.unwrap_model(model)
        keep = inputs["labels"][:, 1:] != -100
        # Through the wrapper's forward, so that DDP, FSDP and DeepSpeed see it.
        loss, *facts = self.teachers.redirect(model, student, self._loss, student, inputs, keep, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The sum is over this process's tokens, its divisor over everyone's, and DDP takes the mean.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        self.teachers.log(tuple(facts))
        return (loss, {}) if return_outputs else loss

    def _loss(
        self, student: PreTrainedModel, inputs: Inputs, keep: Tensor, num_items: Tensor | int | None
    ) -> tuple[Tensor, ...]:
        p = self.teachers.loss(
            student, inputs["input_ids"], inputs["attention_mask"], keep, inputs["teacher_weights"],
            inputs["loss_weight"], num_items,
        )  # fmt: skip
        return p.loss, p.tokens, p.dropped, p.divergence, p.teacher_entropy


class MultiTeacherDistillationTrainer(DistillationTrainer):
    """TRL's on-policy DistillationTrainer with several teachers, entropy weights and judge weights.

    Args:
        model: student.
        teachers: as in `MultiTeacherGKDTrainer`; rows name theirs by the same columns.
        args: `DistillationConfig`; its `beta` and `temperature` are used unless `loss` is given.
        loss: see `LossOptions`.
        tokenizers: as in `MultiTeacherGKDTrainer`.
        **options: as in `DistillationTrainer`. Text only.

    Raises:
        TeacherError, ValueError, ImportError: as in `MultiTeacherGKDTrainer`.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        teachers: Mapping[str, PreTrainedModel | str],
        args: DistillationConfig,
        *,
        loss: LossOptions | None = None,
        tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
        **options: Unpack[DistillationOptions],
    ) -> None:
        models = _prepare(model, teachers, args)
        self._teacher_names = list(models)
        super().__init__(model, next(iter(models.values())), args, **options)
        options_used = loss or LossOptions(beta=args.beta, temperature=args.temperature)
        self.teachers = _Teachers(self, models, options_used, tokenizers)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        self._signature_columns = known + [c for c in _COLUMNS if c not in known]

    def _generate_and_score_completions(self, inputs: list[Row]) -> JsonObject:
        weights, scale = teacher_columns(inputs, self._teacher_names)
        out = super()._generate_and_score_completions(inputs)
        device = out["completion_ids"].device
        return out | {"teacher_weights": weights.to(device), "loss_weight": scale.to(device)}

    def _compute_loss(
        self, unwrapped_student: PreTrainedModel, inputs: Inputs, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        learnt = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        keep = torch.cat([torch.zeros_like(inputs["prompt_mask"]), learnt], 1)[:, 1:] != 0
        p = self.teachers.loss(
            unwrapped_student, ids, mask, keep, inputs["teacher_weights"], inputs["loss_weight"], num_items_in_batch
        )
        self._facts = (p.tokens, p.dropped, p.divergence, p.teacher_entropy)
        return p.loss, p.student_entropy, p.tokens

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, object]:
        """As the parent's, with our metrics."""
        out = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.teachers.log(self._facts)
        return out


_COLUMNS = ("teacher_id", "teacher_weights", "loss_weight")
