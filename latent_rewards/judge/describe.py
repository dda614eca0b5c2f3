"""A load report: what of a judge is used and how, on one screen, and whether it says what it should say."""

from __future__ import annotations

import logging
import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_rewards.engine.blocks import reference_states
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_rewards.judge.hf import HFJudge

logger = logging.getLogger(__name__)

LOW_MASS = 0.1  # labels that hold less than this share are not what the judge was about to say
_TASK = "What is the capital of France?"
_ANSWERS = ("The capital of France is Paris.", "The capital of France is Lyon.", "I like cheese.")
_WIDTH = 120


def describe(judge: HFJudge, prompt: JudgePrompt) -> str:
    """The report of a judge and one of its prompts; loads the judge and reads three texts.

    Args:
        judge: a judge in this process.
        prompt: a prompt with labels.

    Returns:
        Lines "what: how" for people. The last ones give for each text the score, the share of the next token's
        probability that the labels hold, what the judge would write, and how far the reading is from a plain forward.

    Raises:
        ValueError: the judge or the prompt cannot be used; the message says why.
    """
    if prompt.labels is None:
        raise ValueError(f"prompt {prompt.name!r} has no labels to read (kind {prompt.kind!r})")
    blocks, limit = judge.blocks, judge._limit()
    model, options = blocks.model, judge._load_options
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    size = sum(p.numel() for p in model.parameters())
    loaded = [f"{k} {options[k]}" for k in ("quantization", "adapter", "device_map", "tp_plan") if options[k]]
    whole = getattr(blocks.config, "_attn_implementation", None) or "the model's own"
    encoder = judge.encoder
    facts = {
        "judge": f"{judge.model_name}, revision {judge.revision}",
        "model": ", ".join([f"{type(model).__name__}, {size / 1e6:,.0f} M weights, {dtype}, {blocks.device}", *loaded]),
        "arithmetic": judge.arithmetic,
        "texts": f"{judge.forward.sharing}; attention of whole texts: {whole}",
        "head": blocks.head_kind,
        "longest text": f"{'any' if limit >= 1 << 30 else f'{limit} tokens'}; of longer ones: {judge.on_overflow}",
        "system role": encoder.system_role,
        "thought": encoder.thinking,
        "prompt": f"{prompt.name}: {_labels(judge.trie(prompt), prompt, encoder.tokenizer)}",
    }
    checked = _self_check(judge, prompt)
    return "\n".join(_line(k, v) for k, v in {**facts, **checked, "time so far": str(judge.spent)}.items())


@torch.no_grad()
def _self_check(judge: HFJudge, prompt: JudgePrompt) -> dict[str, str]:
    """Three texts, read as rewards read them and by a plain forward of each."""
    rows = [{**dict.fromkeys(prompt.slots, ""), "prompt": _TASK, "completion": answer} for answer in _ANSWERS]
    encoded, reasons = judge._encode(prompt, rows)
    if unread := next((reason for reason in reasons if reason is not None), None):
        return {"WARNING": f"no self-check, its texts cannot be read: {unread}"}
    (reading,) = judge.read([Request(prompt, rows, Need(labels=True))])
    texts = [e.ids for e in encoded]
    assert reading.label_logprobs is not None and reading.label_mass is not None and prompt.labels is not None
    plain, says = _plain(judge, texts, judge.trie(prompt))
    scores = torch.softmax(reading.label_logprobs, -1) @ torch.tensor(prompt.labels.values)
    decode = judge.encoder.tokenizer.decode
    out = {"ends with": repr(decode(texts[0][-16:]))}
    for i, answer in enumerate(_ANSWERS):
        next_token = repr(decode([int(says[i])]))
        out[f"{answer!r}"] = f"score {scores[i]:.3g}, labels hold {reading.label_mass[i]:.0%}, would write {next_token}"
    gap = float((reading.label_logprobs - plain).abs().max())
    out["plain forward"] = f"at most {gap:.1e} nats away on these texts, rounding of both included"
    if float(reading.label_mass.mean()) < LOW_MASS:
        out["WARNING"] = (
            f"the labels hold less than {LOW_MASS:.0%}: the judge was about to say something else. See thought, system "
            "role and what the text ends with; or take a larger judge, or another prompt"
        )
    return out


def _plain(judge: HFJudge, texts: list[list[int]], trie: LabelTrie) -> tuple[Tensor, Tensor]:
    """(B, K) label log-probs and (B,) most probable next tokens by the model's plain forward, one text at a time."""
    chains = trie.chains()
    sequences = [[*ids, *chain] for ids in texts for chain, _ in chains]
    positions = [[len(ids) - 1 + len(trie.contexts[c]) for c in at] for ids in texts for _, at in chains]
    logits, _ = reference_states(judge.blocks, sequences, positions)
    order = [c for _, at in chains for c in at]
    by_context = [logits[order.index(c) :: len(order)].cpu() for c in range(len(trie.contexts))]
    children = [x[:, list(ids)] for x, ids in zip(by_context, trie.children, strict=True)]
    return trie.log_probs(children, [x.logsumexp(-1) for x in by_context]), by_context[0].argmax(-1)


def _labels(trie: LabelTrie, prompt: JudgePrompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The labels, and those that take several tokens."""
    assert prompt.labels is not None
    shortest: dict[int, tuple[int, ...]] = {}
    for path, owner in zip(trie.paths, trie.owners, strict=True):
        shortest[owner] = min(shortest.get(owner, path), path, key=len)
    several = [repr(prompt.labels.names[k]) for k, path in sorted(shortest.items()) if len(path) > 1]
    names = ", ".join(prompt.labels.names)
    return f"{names}{'; of several tokens: ' + ', '.join(several) if several else '; one token each'}"


def _line(key: str, value: str) -> str:
    return textwrap.fill(f"{key + ':':<14} {value}", _WIDTH, subsequent_indent=" " * 15, break_long_words=False)


def warn_of_low_mass(judge: str, prompt: JudgePrompt, reading: Reading, told: set[str]) -> None:
    """Say once for each prompt that the judge was about to say something else than a label.

    Args:
        judge: its name.
        prompt: what it was asked.
        reading: what it read.
        told: hashes of the prompts that have been looked at; this one's is added.
    """
    if reading.label_mass is None or prompt.hash in told:
        return
    mass = reading.label_mass[~reading.label_mass.isnan()][:3]
    if len(mass):
        told.add(prompt.hash)
    if len(mass) and float(mass.mean()) < LOW_MASS:
        logger.warning(
            "%s, prompt %r: the labels hold %.2g of the next token's probability on its first %d texts; what the "
            "judge would say instead: judge.describe(prompt), or latent-rewards score --describe",
            judge, prompt.name, float(mass.mean()), len(mass),
        )  # fmt: skip
