"""TRL's distillation trainers with several teachers per data set, entropy weights and judge weights.

`MultiTeacherGKDTrainer` learns on the responses given, on the student's own (`lmbda`), or both;
`MultiTeacherDistillationTrainer` on the student's own, with vLLM and all else that TRL's stable trainer has. Both
change the loss and nothing else: with one teacher and default options they give their parents' losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
import trl
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.models import prepare_deepspeed
from trl.models.utils import _ForwardRedirection

from latent_rewards.distillation.loss import LossOptions, LossParts, TeacherStates, distillation_loss
from latent_rewards.distillation.teachers import (
    backbone_states,
    check_head,
    check_teacher,
    head_of,
    pack_teacher,
    teacher_columns,
)
from latent_rewards.engine.loading import resolve_model
from latent_rewards.engine.pretrained import load_causal_lm
from latent_rewards.files.types import JsonObject, Row

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
        PreTrainedModel,
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


CHECKED_AGAINST = "1.16"


def check_trl() -> None:
    """Whether the hooks below were checked against the TRL that is installed.

    Raises:
        ImportError: they were not; they override private methods.
    """
    found = Version(trl.__version__)
    if f"{found.major}.{found.minor}" != CHECKED_AGAINST:
        raise ImportError(f"the distillation trainers are checked against TRL {CHECKED_AGAINST}, found {found}")


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
