"""Versions of torch, transformers and TRL: which were tested, and what differs between them.

The contract tests run in an environment of each pair: `python -m benchmarks.matrix`, table in
`benchmarks/results/matrix.md`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Container
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

logger = logging.getLogger(__name__)

# Package -> first and last version that the contract tests passed with; what lies outside is used with a warning.
TESTED = {"torch": ("2.11", "2.15"), "transformers": ("4.57", "5.24"), "trl": ("1.0", "1.16")}
# While `from_pretrained` runs, transformers 5 has the tying of weights off for the whole process, and puts back what it
# found. Of two at once, the last to end puts back "off", and no model that shares its head can be loaded after that.
ONE_LOAD = threading.RLock()
NEEDS_JUDGE = "a judge in this process needs torch and transformers: pip install 'latent-rewards[judge]'"


def has_torch() -> bool:
    """Whether torch is there to be imported."""
    return find_spec("torch") is not None


def release(name: str) -> tuple[int, int] | None:
    """(major, minor) of an installed package; None where it is not installed."""
    try:
        major, minor, *_ = version(name).split("+")[0].split(".")
        return int(major), int(minor)
    except (PackageNotFoundError, ValueError):
        return None


def counts_missing() -> bool:
    """Whether this TRL counts a reward of None as 0: its trainers leave such rows out from 1.6 on."""
    found = release("trl")
    return found is not None and found < (1, 6)


def gguf_options() -> dict[str, object]:
    """Arguments of `from_pretrained` for a GGUF file whose weights are wanted dequantised.

    transformers 5.x has a configuration for it; before, that is what `gguf_file` alone does.
    """
    import transformers

    made = getattr(transformers, "GgufConfig", None)
    return {} if made is None else {"quantization_config": made(dequantize=True)}


def lm_classes() -> list[tuple[Container[type], type]]:
    """(configurations, auto class) for what can be read with an LM head; the multimodal mapping came with 5.x."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = (
        ("MODEL_FOR_CAUSAL_LM_MAPPING", "AutoModelForCausalLM"),
        ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "AutoModelForImageTextToText"),
        ("MODEL_FOR_MULTIMODAL_LM_MAPPING", "AutoModelForMultimodalLM"),
    )
    return [(getattr(auto, m), getattr(transformers, c)) for m, c in names if hasattr(auto, m)]


def saved_by() -> str:
    """Ending of the names of folders that this transformers saves: 4.x cannot load what 5.x saved."""
    found = release("transformers")
    return "-v4" if found is not None and found[0] < 5 else ""


def keep_softcap(model: Any) -> None:
    """Eager attention for a model whose attention logits are soft-capped (Gemma 2, VaultGemma) and that would run SDPA.

    Up to transformers 5.10 at least, it runs SDPA by default, which leaves the cap out, and so gives other scores,
    without a word; 5.23 refuses to.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def mismatch(entry: str | tuple[str, Any, Any]) -> str:
    """One of the `mismatched_keys` that `from_pretrained` tells, in words; transformers 4.x tells no shapes."""
    if isinstance(entry, str):
        return entry
    name, there, here = entry
    return f"{name}: {tuple(there)} in the file, {tuple(here)} by config.json"


def holds_a_decoder(decoder: Any, blocks: Any) -> bool:
    """Whether what `get_decoder` gave is no decoder, but holds one beside a vision tower.

    So for SmolVLM in transformers 4.x, where the places of an image would limit the length of texts.
    """
    import transformers

    found = release("transformers")
    if found is None or found[0] >= 5:
        return False
    inner = [m for m in decoder.modules() if m is not decoder and isinstance(m, transformers.PreTrainedModel)]
    return len(inner) > 1 and any(blocks in set(m.modules()) for m in inner)


def pairwise_judge_base() -> type:
    """TRL's base of pairwise judges: in `trl.experimental.judges` from 1.0 on; TRL 1.16 has none any more.

    Raises:
        ImportError: there is none; says what takes its place.
    """
    try:
        from trl.experimental.judges import BasePairwiseJudge
    except ModuleNotFoundError as err:
        found = "no TRL is installed" if release("trl") is None else f"TRL {version('trl')} has no BasePairwiseJudge"
        raise ImportError(f"{found}: give its trainers reward_funcs=[PairwiseReward(judge)] instead") from err
    base: type = BasePairwiseJudge
    return base


def keep_gradients_finite() -> None:
    """For training in this process: attention without cuDNN, where its backward gives NaN.

    So it does on Hopper cards from torch 2.11 on, with a mask and 64 tokens more than a multiple of 128
    (pytorch#196678, trl#7181); one such batch makes all weights NaN. PyTorch's other kernels take its place.
    """
    import torch

    if (release("torch") or (0, 0)) >= (2, 11):
        torch.backends.cuda.enable_cudnn_sdp(False)


def keep_states_whole(model: Any) -> contextlib.AbstractContextManager[object]:
    """The LM head of a model gets states that lie side by side in memory, until the returned context ends, if it does.

    Of a batch it often gets a slice: the last position, or those of the answers (`logits_to_keep`). Of such PyTorch
    multiplies text by text, and on CPU in bfloat16 copies the head's weight for each: 0.5 GB a text of a model with
    1.5B parameters.
    """
    import torch

    def side_by_side(module: object, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.contiguous() if isinstance(x, torch.Tensor) else x for x in args)

    head = model.get_output_embeddings()
    return contextlib.nullcontext() if head is None else head.register_forward_pre_hook(side_by_side)


@functools.cache
def warn_if_untested() -> None:
    """Say once a process which of the installed versions lie outside the tested range."""
    odd = []
    for name, ends in TESTED.items():
        found = release(name)
        low, high = (tuple(map(int, end.split("."))) for end in ends)
        if found is not None and not low <= found <= high:
            odd.append(f"{name} {version(name)} (tested: {ends[0]} to {ends[1]})")
    if odd:
        logger.warning(
            "latent-rewards was not tested with %s; compare some scores with a plain forward: "
            "latent-rewards score --judge NAME --describe", ", ".join(odd),
        )  # fmt: skip
