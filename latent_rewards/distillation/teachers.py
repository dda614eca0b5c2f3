"""Student and teachers as the distillation trainers see them: checked, and read as states and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_rewards.distillation.mixture import Head, TeacherStates
from latent_rewards.engine.head import same_logits, shape_logits
from latent_rewards.files.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHOSEN = "train on its chosen responses instead (SFT, `recipes.distill` writes them)"


class TeacherError(ValueError):
    """A model cannot serve as a teacher whose whole distribution is compared; the message says what to do instead."""


def check_teacher(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    name: str,
    *,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
) -> None:
    """Whether a teacher's next-token distribution can be compared with the student's.

    Args:
        student: causal LM.
        teacher: causal LM.
        name: of the teacher, for the message.
        tokenizers: of student and teacher, to compare what the token ids mean.

    Raises:
        TeacherError: no logits, another vocabulary size, or ids that mean other tokens.
    """
    head = getattr(teacher, "get_output_embeddings", lambda: None)()
    if not callable(head):
        raise TeacherError(
            f"teacher {name!r} ({type(teacher).__name__}) has no LM head and so gives no logits; {_CHOSEN}"
        )
    ours, theirs = (m.config.get_text_config().vocab_size for m in (student, teacher))
    if ours != theirs:
        raise TeacherError(
            f"teacher {name!r} has a vocabulary of {theirs} tokens, the student {ours}. If the tokenizers are the same "
            f"and only the padding rows differ, call `teacher.resize_token_embeddings({ours})`; else {_CHOSEN}, or use "
            "TRL's GOLDTrainer"
        )
    if tokenizers is not None:
        first, second = (t.get_vocab() for t in tokenizers)
        other = [token for token, i in first.items() if second.get(token) != i]
        if other:
            raise TeacherError(
                f"teacher {name!r} has another tokenizer: {len(other)} of {len(first)} tokens have other ids, e.g. "
                f"{other[0]!r}; {_CHOSEN}, or use TRL's GOLDTrainer"
            )


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str) -> None:
    """Whether our split into backbone and head gives the model's own logits.

    Raises:
        TeacherError: it does not.
    """
    ids = torch.arange(1, 5, device=model.get_input_embeddings().get_parameter("weight").device)[None]
    training = model.training
    model.eval()
    try:
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        ours = head_of(model)(backbone_states(model, ids, torch.ones_like(ids))[0]).float()
    finally:
        model.train(training)
    unit = torch.finfo(next(model.parameters()).dtype).eps / 2
    close = same_logits(ours, own, unit)
    if torch.isfinite(own).all() and not close:
        raise TeacherError(f"{name!r} ({type(model).__name__}) changes its logits in a way we do not know; {_CHOSEN}")


def head_of(model: PreTrainedModel) -> Head:
    """(n, D) -> (n, V) logits of an unwrapped causal LM, as the model itself makes them from its backbone's states."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    return lambda states: shape_logits(config, head(states))


def backbone_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, T, D) states before the LM head of an unwrapped causal LM, PEFT or not."""
    plain = model.get_submodule("base_model.model") if hasattr(model, "peft_config") else model
    backbone = plain.get_submodule("base_model")
    return backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def pack_teacher(states_N: Tensor | None, asked_N: Tensor, head: Head, name: str) -> TeacherStates:
    """A teacher that was asked about some of N positions.

    Args:
        states_N: (R, D) its states at those positions, in order; None when it was asked about none.
        asked_N: (N,) which positions.
        head: its head.
        name: for messages.
    """
    index = torch.where(asked_N, asked_N.cumsum(0) - 1, -1)
    empty = torch.zeros(0, 1, device=asked_N.device)
    return TeacherStates(empty if states_N is None else states_N, head, index, name)


def teacher_columns(rows: Sequence[Row], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the trainers route on, from data set rows.

    Args:
        rows: B rows with `teacher_weights` (M numbers, or a mapping of name to number), or `teacher_id`; with one
            teacher neither is needed. `loss_weight` is optional.
        names: M teachers.

    Returns:
        (B, M) weights over teachers, and (B,) weight of each row in the loss.

    Raises:
        ValueError: a row names an unknown teacher, or names none; the message has the row's number in the batch.
    """
    weights, scale = torch.zeros(len(rows), len(names)), torch.ones(len(rows))
    for i, row in enumerate(rows):
        given, teacher = row.get("teacher_weights"), row.get("teacher_id")
        if isinstance(given, Mapping):
            unknown = sorted(k for k, v in given.items() if v and k not in names)
            if unknown:
                raise ValueError(f"row {i}: unknown teachers {unknown}; the trainer has {list(names)}")
            given = [given.get(name) or 0.0 for name in names]
        if given is not None:
            if len(given) != len(names):
                raise ValueError(f"row {i}: {len(given)} teacher weights for the {len(names)} teachers {list(names)}")
            weights[i] = torch.tensor([float(w) for w in given])
        elif teacher is not None:
            if teacher not in names:
                raise ValueError(f"row {i}: unknown teacher {teacher!r}; the trainer has {list(names)}")
            weights[i, list(names).index(teacher)] = 1.0
        elif len(names) == 1:
            weights[i] = 1.0
        else:
            raise ValueError(f"row {i}: with several teachers every row needs `teacher_id` or `teacher_weights`")
        if not torch.isfinite(weights[i]).all() or (weights[i] < 0).any() or not weights[i].any():
            raise ValueError(
                f"row {i}: teacher weights must be finite, at least 0 and not all 0, got {weights[i].tolist()}"
            )
        if row.get("loss_weight") is not None:
            scale[i] = float(row["loss_weight"])
            if not 0 <= scale[i] < float("inf"):
                raise ValueError(f"row {i}: loss_weight must be finite and at least 0, got {row['loss_weight']}")
    return weights, scale
