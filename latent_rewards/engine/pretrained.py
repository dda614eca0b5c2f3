"""Whole causal LMs from checkpoints, VLMs among them; one whose files do not hold the whole LM is refused."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_rewards import compat
from latent_rewards.engine.adapter_files import text_of
from latent_rewards.engine.peft_adapters import check_loaded

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

logger = logging.getLogger(__name__)

_REWARD_MODEL = (
    "a reward model gives its own score: GRPOTrainer(reward_funcs=<its name>) reads it, and `latent-rewards export` "
    "makes such a model of a judge"
)
_NOT_A_JUDGE = "a judge is a causal LM with its LM head, as AutoModelForCausalLM saves it"
_TWO_PARTS = "{} is an encoder-decoder ({}); " + _NOT_A_JUDGE
_KINDS = (  # what a class is called in config.json, what that is, and the way out
    (r"SequenceClassification|Reward", "a reward model or sequence classifier", _REWARD_MODEL),
    (r"TokenClassification", "a token classifier", _NOT_A_JUDGE),
    (r"QuestionAnswering|MultipleChoice|NextSentence", "a question-answering or choice model", _NOT_A_JUDGE),
    (r"MaskedLM|ForPreTraining", "a masked LM, which reads to the right too", _NOT_A_JUDGE),
    (
        r"^(?!.*LMHead).*Model$",
        "a model without an LM head, such as an embedding model",
        _NOT_A_JUDGE + "; where its embedding does serve as its head, load it yourself and give HFJudge(model, "
        "tokenizer=tokenizer)",
    ),
)
_HEADS = re.compile(r"(^|\.)(score|classifier|classification_head|qa_outputs|reward_head|rm_head|regression_layer)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|output)\.")
_PEFT = re.compile(r"(^base_model\.model\.)|\.(base_layer|lora_[AB]|lora_embedding_[AB]|modules_to_save)\.")
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "pretrained_model.", "actor.", "policy.")


def load_causal_lm(
    name: str, options: Mapping[str, Any], *, dtype_of: Callable[[PretrainedConfig], torch.dtype] | None = None
) -> PreTrainedModel:
    """A causal LM from a folder or the hub, every weight of it from the files.

    Args:
        name: hub id or folder.
        options: of `from_pretrained`.
        dtype_of: gives the type for the model's config, over that of the options.

    Raises:
        ValueError: the checkpoint is none of a causal LM, or lacks weights of it; the message says what it looks like.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    known = {k: options[k] for k in ("revision", "trust_remote_code") if k in options}
    config = AutoConfig.from_pretrained(name, **known)
    check_config(config, name)
    if "Pooling" in (text_of(name, "modules.json", **{k: v for k, v in known.items() if k == "revision"}) or ""):
        raise ValueError(
            f"{name} is an embedding model of sentence-transformers (modules.json), whose head is not trained; "
            f"{_NOT_A_JUDGE}"
        )
    if dtype_of is not None:
        options = {**options, "dtype": dtype_of(config)}
    try:
        with compat.ONE_LOAD:
            model, info = auto_class(config, name).from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except SafetensorError as err:
        raise ValueError(
            f"{_broken(name)} cannot be read ({err}): it is cut short or no weights; fetch it anew"
        ) from err
    check_weights(model, info, name)
    return model


def auto_class(config: PretrainedConfig, name: str) -> type[_BaseAutoModelClass]:
    """The class of transformers that loads this config with an LM head.

    Raises:
        ValueError: there is none.
    """
    import transformers

    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return transformers.AutoModelForCausalLM
    for configs, cls in compat.lm_classes():
        if type(config) in configs:
            return cls
    raise ValueError(f"{name} is a {config.model_type!r} model, for which transformers has no LM head; {_NOT_A_JUDGE}")


def check_config(config: PretrainedConfig, name: str) -> None:
    """What config.json says of the checkpoint.

    Raises:
        ValueError: an encoder-decoder, or a model saved with another head or with none.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(_TWO_PARTS.format(name, config.model_type))
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    for architecture in getattr(config, "architectures", None) or ():
        for pattern, what, way_out in _KINDS:
            if re.search(pattern, architecture):
                raise ValueError(f"{name} is {what} (architectures: {architecture}), no causal LM; {way_out}")


def check_model(model: PreTrainedModel) -> None:
    """Whether a loaded model is a causal LM with a head, and its adapters, if any, can be read.

    Raises:
        ValueError: it is not.
    """
    check_loaded(model)
    inner = getattr(model, "get_base_model", lambda: model)() if hasattr(model, "peft_config") else model
    kind, config = type(inner).__name__, model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(_TWO_PARTS.format(kind, config.model_type))
    headless = getattr(model, "get_output_embeddings", lambda: None)() is None
    for pattern, what, way_out in _KINDS if headless else _KINDS[:-1]:
        if re.search(pattern, kind):
            raise ValueError(f"a {kind} is {what}, no causal LM; {way_out}")
    if headless:
        raise ValueError(f"{kind} has no LM head (get_output_embeddings() is None); {_NOT_A_JUDGE}")


def check_weights(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """What `output_loading_info` says of the weights; those that are more than the model needs are logged.

    Raises:
        ValueError: weights of the model are not in the files, or do not fit, or the files hold another head.
    """
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if info["mismatched_keys"]:
        shapes = sorted(map(compat.mismatch, info["mismatched_keys"]))
        raise ValueError(
            f"{name}: the shapes of {len(shapes)} weights are not those of its config.json ({_some(shapes)}); save "
            "model and config together with save_pretrained"
        )
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} weights of {type(model).__name__} are not in its files and would be random "
            f"({_some(missing)}); {_looks_like(missing, extra)}"
        )
    if info.get("error_msgs"):
        raise ValueError(f"{name} was not loaded whole: {_some(info['error_msgs'])}")
    heads = [k for k in extra if _HEADS.search(k)]
    if heads:
        raise ValueError(f"{name} has a head of another kind ({_some(heads)}): {_REWARD_MODEL}")
    own = set(model.state_dict())
    left = [k for k in extra if _PEFT.search(k) or (k.endswith(".bias") and k.removesuffix("bias") + "weight" in own)]
    if left:
        raise ValueError(
            f"{name}: {len(left)} weights in its files would be left out, though they belong to modules of the model "
            f"({_some(left)}); config.json is not of these weights, or an adapter was not merged: save it anew with "
            "model.merge_and_unload().save_pretrained(...)"
        )
    if extra:
        logger.info("%s: %d weights in its files are not the LM's (%s)", name, len(extra), _some(extra))


def processor_template(model: str, **hub: str) -> str | None:
    """The chat template of a VLM, whose processor may have it in a file that the tokenizer does not read."""
    for file in ("chat_template.json", "processor_config.json"):
        text = text_of(model, file, **hub)
        template = json.loads(text).get("chat_template") if text else None
        if isinstance(template, str):
            return template
    return None


def _looks_like(missing: Sequence[str], extra: Sequence[str]) -> str:
    """What a checkpoint with missing weights seems to be, and what to do."""
    if any(_PEFT.search(k) for k in extra):
        return (
            "the files look like a PEFT model that was not merged: save it anew with "
            "model.merge_and_unload().save_pretrained(...), or give its adapter folder as adapter="
        )
    prefix = _prefix(missing, extra)
    if prefix is not None:
        return (
            f"the names in its files begin with {prefix!r}, as of a wrapped model (DDP, FSDP, torch.compile, a "
            "trainer): save the inner model, accelerator.unwrap_model(model).save_pretrained(...)"
        )
    if any(_HEADS.search(k) for k in extra):
        return (
            f"the files hold a head of another kind ({_some([k for k in extra if _HEADS.search(k)])}): {_REWARD_MODEL}"
        )
    if all(_HEAD.search(k) for k in missing):
        return f"the model was saved without its LM head, as embedding models are; {_NOT_A_JUDGE}"
    return "the files are incomplete, or not of this config.json: fetch or save the checkpoint anew"


def _prefix(missing: Sequence[str], extra: Sequence[str]) -> str | None:
    """What stands before the names of missing weights in the files."""
    for key in extra:
        if key.startswith(_WRAPPERS):
            return next(w for w in _WRAPPERS if key.startswith(w))
    ends = {m for m in missing if m.count(".") > 1}
    for key in extra:
        parts = key.split(".")
        for i in range(1, len(parts) - 2):
            if ".".join(parts[i:]) in ends:
                return ".".join(parts[:i]) + "."
    return None


def _broken(name: str) -> str:
    """The weight file that safetensors does not open."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(name).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return str(file)
    return f"a weight file of {name}"


def _some(names: Iterable[str], n: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


@contextlib.contextmanager
def no_deepspeed() -> Iterator[None]:
    """Hide a running DeepSpeed config from `from_pretrained`, which would shard the judge under ZeRO-3."""
    from transformers.integrations import deepspeed

    ref = getattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    config = ref() if ref is not None else None
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)
