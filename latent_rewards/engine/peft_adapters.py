"""A judge's PEFT adapter: what it was trained with (rows, tokenizer, template) is used, or it is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from latent_rewards.engine.decoder import embedding

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PICKLED = (
    "{} has no safetensors weights; a pickle can run code and is not loaded: where you trust it, load it once and save "
    "it with save_pretrained"
)
_TASKS = (None, "CAUSAL_LM")
_ROUTED = {"XLORA", "POLY"}


class Source(NamedTuple):
    """Where a judge comes from: a whole model, and an adapter on it or None; each with its revision."""

    model: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None = None


def find_source(model: str, revision: str | None, adapter: str | None) -> Source:
    """A model's name taken apart: that of an adapter stands for its base and the adapter.

    Raises:
        ValueError: two adapters, an adapter without the name of its base, or a folder with both model and adapter.
    """
    from transformers.utils import find_adapter_config_file

    file = find_adapter_config_file(model, revision=revision)
    if file is None:
        return Source(model, revision, adapter)
    if (Path(model) / "config.json").is_file():
        raise ValueError(
            f"{model} holds a whole model and an adapter, and does not say whether one is merged into the other; move "
            "the adapter to a folder of its own and give it as adapter=, or remove adapter_config.json where it is in"
        )
    if adapter is not None:
        raise ValueError(
            f"{model} is an adapter itself; HFJudge takes its base and one adapter, not adapter={adapter!r}"
        )
    said = json.loads(Path(file).read_text(encoding="utf-8"))
    base = said.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{model} is an adapter that does not name its base: HFJudge(<its base>, adapter={model!r})")
    return Source(base, said.get("revision"), model, revision)


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
    after = _rows(model, _file(adapter, **hub), config) or before
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


def _file(adapter: str, **hub: Any) -> Path:
    """The adapter's weights; those that are there as a pickle only are refused, PEFT would read them."""
    if Path(adapter).is_dir():
        file = Path(adapter) / WEIGHTS
        if not file.is_file():
            raise ValueError(PICKLED.format(adapter))
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(adapter, WEIGHTS, **hub))
    except EntryNotFoundError as err:
        raise ValueError(PICKLED.format(adapter)) from err


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


def adapter_tokenizer(
    base: PreTrainedTokenizerBase | None, source: Source, **options: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer and chat template saved with the adapter, the base's where there are none.

    Args:
        base: the base's tokenizer, or None.
        source: names, for messages.
        options: of `from_pretrained`.

    Raises:
        ValueError: the adapter's tokenizer gives the base's tokens other ids, or neither has one.
    """
    from transformers import AutoTokenizer

    adapter, hub = str(source.adapter), {"revision": source.adapter_revision} if source.adapter_revision else {}
    if text_of(adapter, "tokenizer_config.json", **hub) is None:
        template = text_of(adapter, "chat_template.jinja", **hub)
        if base is not None and template is not None and template != base.chat_template:
            logger.warning("the chat template of %s is used, not that of %s", adapter, source.model)
            base.chat_template = template
        return base
    own = AutoTokenizer.from_pretrained(adapter, **hub, **options)
    if base is None:
        return own
    ours, theirs = own.get_vocab(), base.get_vocab()
    moved = [token for token, i in theirs.items() if ours.get(token, i) != i]
    kept = sum(token in ours for token in theirs)
    if moved or 2 * kept < len(theirs):
        what = f"{moved[0]!r} is {ours[moved[0]]} and {theirs[moved[0]]}" if moved else f"{kept} tokens in common"
        raise ValueError(
            f"the tokenizer of the adapter {adapter} is not that of {source.model} ({what}); give the base that the "
            "adapter was trained on, or remove the tokenizer files from the adapter's folder"
        )
    if not own.chat_template and base.chat_template:
        logger.warning("%s has a tokenizer without chat template; that of %s is used", adapter, source.model)
        own.chat_template = base.chat_template
    elif own.chat_template != base.chat_template:
        logger.warning("the chat template of %s is used, not that of %s", adapter, source.model)
    return own


def text_of(name: str, file: str, **hub: str) -> str | None:
    """A small file of a folder or hub repository; None where it is not there."""
    from transformers.utils import cached_file

    path = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False, **hub
    )
    return None if path is None else Path(path).read_text(encoding="utf-8")
