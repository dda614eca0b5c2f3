"""Loading a frozen judge: any hub or local model, or the small embedded one."""

from __future__ import annotations

import hashlib
import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from latent_rewards import compat
from latent_rewards.engine import arithmetic
from latent_rewards.engine.adapter_files import PICKLED, Source, adapter_tokenizer, find_source
from latent_rewards.engine.embedded import EMBEDDED as EMBEDDED
from latent_rewards.engine.embedded import embedded_model as embedded_model
from latent_rewards.engine.embedded import resolve_model as resolve_model
from latent_rewards.engine.peft_adapters import apply_adapter
from latent_rewards.engine.pretrained import load_causal_lm, no_deepspeed, processor_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

M = TypeVar("M", bound=torch.nn.Module)

logger = logging.getLogger(__name__)

_why: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()  # loaded models: their precision


def load_frozen(
    model: str,
    *,
    revision: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    device_map: str | dict[str, int | str] | None,
    tp_plan: str | dict[str, str] | None,
    quantization: str | QuantizationConfigMixin | None,
    adapter: str | None,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """A frozen causal LM in eval mode, whole and unsharded even inside a DeepSpeed ZeRO-3 run.

    Weights are read from safetensors only, an adapter's too: a pickle can run code. All of them have to be there. The
    name of an adapter stands for its base and the adapter. On CPU dtype "auto" is what this machine is faster at.

    Raises:
        ValueError: unknown options, weights that are there as a pickle only or not at all, or no causal LM.
    """
    compat.warn_if_untested()
    if device.type == "cpu":
        _bound_kernel_caches()
    asked, why = _dtype(dtype), "the checkpoint's" if dtype == "auto" else "as asked for"
    options: dict[str, object] = {"dtype": asked, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    source = judge_source(model, revision=revision, adapter=adapter)
    for key, value in (
        ("revision", source.revision),
        ("quantization_config", _quantization(quantization)),
        ("attn_implementation", attn_implementation),
        ("tp_plan", tp_plan),
    ):
        if value is not None:
            options[key] = value
    if device_map is not None:
        options["device_map"] = device_map
    elif quantization is not None:
        options["device_map"] = {"": device}
    folder = Path(source.model)
    if folder.is_dir() and list(folder.glob("pytorch_model*.bin")) and not list(folder.glob("*.safetensors")):
        raise ValueError(PICKLED.format(folder))

    def fastest(config: PretrainedConfig) -> torch.dtype:
        nonlocal why
        choice = arithmetic.choose(config, quantised=quantization is not None)
        why = choice.why
        return choice.dtype

    with no_deepspeed():
        on_cpu = asked == "auto" and device.type == "cpu"
        loaded = load_causal_lm(source.model, options, dtype_of=fastest if on_cpu else None)
        if source.adapter is not None:
            loaded = apply_adapter(loaded, source)
    if "device_map" not in options and tp_plan is None:
        loaded.to(device)  # type: ignore[arg-type]
    _why[loaded] = why
    return freeze(loaded)


def arithmetic_of(model: PreTrainedModel) -> str:
    """What a model computes in, and why, in a line."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"{dtype}: {_why.get(model, 'as it was given')}"


def judge_source(model: str, *, revision: str | None = None, adapter: str | None = None) -> Source:
    """The whole model that a judge's name stands for, and the adapter on it.

    Raises:
        ValueError: names that leave open what is meant.
    """
    return find_source(resolve_model(model), revision, adapter)


def freeze(model: M) -> M:
    """Eval mode, no gradients."""
    return model.eval().requires_grad_(False)


def load_tokenizer(
    model: str, *, revision: str | None, trust_remote_code: bool, adapter: str | None = None
) -> PreTrainedTokenizerBase:
    """The judge's tokenizer; that of its adapter, where one was saved beside it.

    Raises:
        ValueError: the adapter's tokenizer does not belong to this base.
        OSError: there is none.
    """
    from transformers import AutoTokenizer

    source = judge_source(model, revision=revision, adapter=adapter)
    hub = {"revision": source.revision} if source.revision is not None else {}
    base: PreTrainedTokenizerBase | None = None
    try:
        base = AutoTokenizer.from_pretrained(source.model, trust_remote_code=trust_remote_code, **hub)
        if not base.chat_template:
            base.chat_template = processor_template(source.model, **hub)
    except OSError:
        if source.adapter is None:
            raise
    except (ValueError, ImportError, AttributeError) as err:  # 4.57: no name of a file; to 5.0 at least: protobuf
        if source.adapter is None:
            said = str(err).strip().splitlines()[0]
            raise ValueError(
                f"{source.model} has no tokenizer that transformers can load ({said}); save it beside the weights with "
                "tokenizer.save_pretrained, or give HFJudge(model, tokenizer=tokenizer)"
            ) from err
    own = base if source.adapter is None else adapter_tokenizer(base, source, trust_remote_code=trust_remote_code)
    if own is None:
        raise OSError(f"neither {source.model} nor its adapter {source.adapter} has a tokenizer; save it beside either")
    return own


def default_device() -> torch.device:
    """cuda:LOCAL_RANK where there is one, else the first accelerator, else CPU."""
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank if rank < torch.cuda.device_count() else 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def model_revision(model: PreTrainedModel, name: str) -> str:
    """Commit of a hub model, else a short hash of the weights' names, shapes and a few values."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit and not Path(name).exists():
        return str(commit)
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        flat = value.detach().flatten()
        # Rounded, so that float32 and bfloat16 copies of the same weights agree.
        probe = flat[:: max(1, flat.numel() // 16)][:16].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{key}{tuple(value.shape)}".encode() + probe.tobytes())
    return digest.hexdigest()[:16]


def _bound_kernel_caches() -> None:
    """Few compiled kernels kept by oneDNN and by PyTorch's layer over it, unless the user has said how many.

    They keep one per shape, 0.7 MB each and 1,024 by default: 0.7 GB over lengths as they come. A forward needs each of
    its four or so in all layers and then, most often, never again. Both variables are read at the first use.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"unknown dtype {dtype!r}; use 'auto', 'float32', 'bfloat16' or 'float16'")
        return found
    return dtype


def _quantization(quantization: str | QuantizationConfigMixin | None) -> QuantizationConfigMixin | None:
    """A transformers quantisation config; "4bit" and "8bit" are short for bitsandbytes."""
    if quantization in ("4bit", "8bit"):
        from transformers import BitsAndBytesConfig

        if quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
    if isinstance(quantization, str):
        raise ValueError(f"unknown quantization {quantization!r}; use '4bit', '8bit' or a transformers config object")
    return quantization
