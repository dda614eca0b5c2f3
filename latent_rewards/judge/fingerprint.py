"""What a kept score belongs to: plain facts about judges, and hashes of facts and weights.

Of a judge in this process (`HFJudge.facts`) all that changes readings by more than rounding. In: the weights (the hub's
commit; else every bit of them, adapter included), precision, configuration, tokenizer, chat template as it renders,
length limit. `attn_implementation` and `batch_invariant` are in, too: kernels differ in the masks that they know, and
bit-identical readings must not mix with others. Out, since they move a reading by rounding alone and a run may go on
elsewhere: device and its map, `batch_tokens`, `cache_bytes`, `share_prefixes`, `compile`, the version of torch; and
name and folder, which change nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge
from latent_rewards.version import __version__

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 3
"""Raised whenever the same judge, prompt and text give another reading than before."""
_OF_THIS_MACHINE = ("_name_or_path", "_commit_hash", "transformers_version")


def digest(facts: object) -> str:
    """32 hex digits of plain data, equal for equal content whatever object holds it.

    Raises:
        TypeError: something other than mappings, lists, text, numbers, truth values and None.
    """
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of every bit of some tensors, their names, shapes and dtypes; in any order."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        whole.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        if value.numel():  # torch cannot view nothing
            whole.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()[:32]


def changed(old: object, new: object, key: str = "") -> list[str]:
    """One "key: old -> new" for every leaf in which two configurations differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys((*old, *new))
        return [c for n in names for c in changed(old.get(n), new.get(n), f"{key}.{n}" if key else str(n))]
    return [] if old == new else [f"{key}: {old!r} -> {new!r}"]


def judge_key(judge: Judge) -> str:
    """The judge's own `fingerprint`: equal keys mean equal readings, up to rounding.

    Raises:
        TypeError: a judge without one; what is kept under its name alone could be another judge's.
    """
    found = getattr(judge, "fingerprint", None)
    if not isinstance(found, str):
        raise TypeError(
            f"{type(judge).__name__} {judge.name!r} states no `fingerprint` (text that differs whenever its readings "
            "do), without which its scores cannot be told from another judge's; give it one"
        )
    return found


def facts_of(judge: Judge) -> dict[str, object]:
    """The judge's `facts`, so that a difference can be named.

    Raises:
        TypeError: as `judge_key`.
    """
    judge_key(judge)
    return dict(judge.facts)


def layout_of(judge: Judge, prompt: JudgePrompt) -> str | None:
    """`Encoder.layout_hash` of a judge that renders prompts in this process; None of one that does it elsewhere."""
    return None if judge.encoder is None else judge.encoder.layout_hash(prompt)


def software() -> dict[str, object]:
    """Versions of what decides token ids and the model's equations. torch decides only how they are rounded."""
    return {"format": FORMAT, "latent-rewards": __version__, "transformers": version("transformers")}


def model_facts(model: PreTrainedModel | PeftModel, commit: str | None) -> dict[str, object]:
    """A loaded model: weights, precision, configuration, adapters, attention.

    Args:
        model: a transformers or PEFT model.
        commit: hub commit where the weights are those of a commit; None hashes all of them.
    """
    config = json.loads(json.dumps(model.config.to_dict(), default=str))
    adapters = {name: made.to_dict() for name, made in (getattr(model, "peft_config", None) or {}).items()}
    return {
        "class": type(model).__name__,
        "weights": commit or tensors_hash(model.state_dict()),
        "dtype": sorted({str(p.dtype) for p in model.parameters()}),
        "config": {k: v for k, v in config.items() if k not in _OF_THIS_MACHINE},
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "adapters": json.loads(json.dumps(adapters, default=_plain)) | _in_use(model),
    }


def _in_use(model: nn.Module) -> dict[str, object]:
    """Which of a model's unmerged adapters act, where, and how strongly; nothing where there are none."""
    state = {
        name: [list(module.active_adapters), module.disable_adapters, getattr(module, "scaling", None)]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)  # PEFT's layers; models have a method
    }
    return {"in use": digest(json.loads(json.dumps(state, default=_plain)))} if state else {}


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hex digits of all that decides token ids and the judge's dialogue."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = {str(i): str(t) for i, t in (getattr(tokenizer, "added_tokens_decoder", {}) or {}).items()}
        rules = {"vocabulary": tokenizer.get_vocab(), "added": added}
    else:
        rules = json.loads(backend.to_str())
        rules |= {"padding": None, "truncation": None}  # of the last call, not of the tokenizer
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest([type(tokenizer).__name__, rules, special, str(tokenizer.chat_template)])


def _plain(value: object) -> object:
    """Sets of module names in the order of the alphabet, and everything else as text."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
