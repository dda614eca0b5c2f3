"""A judge's PEFT adapter: what it was trained with (rows, tokenizer, template) is used, or it is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latent_rewards.engine.adapter_files import Source, adapter_weights
from latent_rewards.engine.decoder import embedding

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

_TASKS = (None, "CAUSAL_LM")
_ROUTED = {"XLORA", "POLY"}


def check_adapter(config: PeftConfig, name: str) -> None:
    """Whether a judge with this adapter is read as it runs: a forward over the text alone, the same at each position.

    Args:
        config: its PEFT config.
        name: of the adapter, or of the model that has it.

    Raises:
        ValueError: it is not.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    task = getattr(config.task_type, "value", config.task_type)
    if task not in _TASKS:
        raise ValueError(f"{name} is an adapter for {task}, no causal LM; a reward model's is for TRL's own path")
    why = None
    if getattr(config, "is_prompt_learning", False):
        why = "puts learned tokens before the text"
    elif getattr(config, "alora_invocation_tokens", None):
        why = "changes the model only after its invocation tokens (aLoRA)"
    elif kind in _ROUTED:
        why = "chooses its weights anew for each text"
    if why is not None:
        raise ValueError(
            f"{name}: a {kind} adapter {why}, which this judge does not do; use one that changes the weights alone "
            "(LoRA, DoRA, IA3), or fold the instruction into the judge's prompt"
        )


def check_loaded(model: PreTrainedModel) -> None:
    """`check_adapter` for the adapters of a loaded model.

    Raises:
        ValueError: one of them cannot be read.
    """
    configs = getattr(model, "peft_config", None)
    for name, config in configs.items() if isinstance(configs, dict) else ():
        check_adapter(config, f"{type(model).__name__} (adapter {name!r})")


def apply_adapter(model: PreTrainedModel, source: Source) -> PreTrainedModel:
    """The base with its adapter merged into it; embeddings get as many rows as the adapter was trained with.

    Raises:
        ValueError: an adapter that cannot be read, that does not fit the base, or whose rows are not in its file.
    """
    from peft import PeftConfig, PeftModel

    adapter = str(source.adapter)
    hub: dict[str, Any] = {} if source.adapter_revision is None else {"revision": source.adapter_revision}
    config = PeftConfig.from_pretrained(adapter, **hub)
    check_adapter(config, adapter)
    before = len(embedding(model))
    after = _rows(model, adapter_weights(adapter, source.adapter_revision), config) or before
    if after != before:
        _resize(model, after)
    config.inference_mode = True
    wrapped: Any = PeftModel(model, config)
    mapping = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    device = str(embedding(model).device)
    result = wrapped.load_adapter(adapter, "default", torch_device=device, key_mapping=mapping, **hub)
    # PEFT saves resized embeddings twice, once under a name that it does not read, and a tied head's trained rows too.
    twice = (".modules_to_save.", ".lm_head.token_adapter.")
    extra = [key for key in result.unexpected_keys if not any(part in key for part in twice)]
    wrong = [*result.missing_keys, *extra]
    if wrong:
        raise ValueError(
            f"{adapter} does not fit {source.model}: {len(result.missing_keys)} of its weights are not in its file, "
            f"{len(extra)} in it have no place (e.g. {wrong[0]}); give the base it was trained on"
        )
    _untie(wrapped)
    merge = getattr(wrapped.base_model, "merge_and_unload", None)
    merged: PreTrainedModel = merge() if merge is not None else wrapped
    merged.config._commit_hash = None  # these are not that commit's weights any more
    if after > before:
        _check_rows(merged, before, after, source)
    return merged


def _untie(wrapped: PeftModel) -> None:
    """Give the head a weight of its own where it shares the embedding's and one of them is adapted.

    What is merged into one would change the other, too; while it was trained, it did not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (wrapped.get_input_embeddings(), wrapped.get_output_embeddings())
    adapted = [isinstance(m, BaseTunerLayer) for m in ends]
    embedding, head = (m.get_base_layer() if a else m for m, a in zip(ends, adapted, strict=True))
    if any(adapted) and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        wrapped.config.tie_word_embeddings = False


def _rows(model: PreTrainedModel, file: Path, config: PeftConfig) -> int | None:
    """Rows of the embeddings that the adapter was trained with, where its file tells."""
    from safetensors import safe_open

    names = {id(module): name for name, module in model.named_modules()}
    ends = [names.get(id(m)) for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    rows = set()
    with safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():
            inside = next((key.split(f".{end}.", 1)[1] for end in ends if end and f".{end}." in key), None)
            shape = tensors.get_slice(key).get_shape()
            if inside is None or len(shape) != 2:
                continue
            if "lora_embedding_A" in inside:
                rows.add(shape[1])
            elif "lora_B" in inside or (inside.endswith("weight") and "lora" not in inside):
                rows.add(shape[0])
    trained = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or ()
    lists = trained.values() if isinstance(trained, dict) else (trained,)
    last = max((max(ids) for ids in lists if ids), default=-1) + 1
    if last > len(embedding(model)):
        rows.add(last)
    return max(rows, default=None)


def _resize(model: PreTrainedModel, rows: int) -> None:
    """As many rows in input and output embeddings; new ones are NaN until the adapter fills them."""
    before = len(embedding(model))
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in module.parameters(recurse=False):  # weight, and bias where there is one
                parameter[before:] = math.nan


def _check_rows(model: PreTrainedModel, before: int, after: int, source: Source) -> None:
    for what, module in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        if any(p[before:].isnan().any() for p in module.parameters()):
            raise ValueError(
                f"{source.adapter} was trained on {after} tokens, {source.model} has {before}, and the adapter does "
                f"not hold the {what} embeddings of the {after - before} new ones: train it with "
                'modules_to_save=["embed_tokens", "lm_head"] (and ensure_weight_tying=True where they are tied), or '
                "merge it where it was trained and give the merged model"
            )
