"""Sampled answers of a model: the Likert baseline's ratings, and completions of a policy."""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from latent_rewards.compat import keep_states_whole
from latent_rewards.engine.decoder import embedding
from latent_rewards.engine.rope_switch import RopeSwitch

if TYPE_CHECKING:
    from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    *,
    n: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    top_p: float = 1.0,
    top_k: int = 0,
) -> list[list[str]]:
    """N answers to each of B prompts in padded batches; global random state is untouched.

    One batch serves all, unless the model's rotary frequencies depend on the longest text of a call.

    Args:
        model: causal LM.
        tokenizer: its tokenizer.
        ids: B token sequences.
        n: answers per prompt.
        temperature: of sampling; 0 is greedy, one answer repeated n times.
        max_new_tokens: longest answer.
        seed: the answers depend on it and on `ids`.
        top_p: smallest set of tokens that holds this share of the probability; 1 takes all.
        top_k: most probable tokens only; 0 takes all.

    Returns:
        B lists of n texts.
    """
    rope = RopeSwitch(model, model.config.get_text_config(decoder=True))
    config = _config(model, tokenizer, temperature, max_new_tokens=max_new_tokens, top_p=top_p, top_k=top_k)
    out: list[list[str]] = [[] for _ in ids]
    with keep_states_whole(model):
        for batch in rope.batches([len(r) for r in ids], max_new_tokens):
            rope.reset()
            for i, answers in zip(
                batch, _sample(model, tokenizer, [ids[i] for i in batch], rope, config, n, seed), strict=True
            ):
                out[i] = answers
    return out


def _config(model: Any, tokenizer: PreTrainedTokenizerBase, temperature: float, **options: float) -> GenerationConfig:
    """How to sample, from nothing but these options: the model's own would fill what is unset."""
    from transformers import GenerationConfig

    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ends = (e if isinstance(e, list) else [e] for e in (model.generation_config.eos_token_id, tokenizer.eos_token_id))
    eos = sorted({i for end in ends for i in end if i is not None}) or None
    how = {"do_sample": True, "temperature": temperature, **options}
    if not temperature > 0:
        how = {"do_sample": False, "max_new_tokens": options["max_new_tokens"]}
    return GenerationConfig(pad_token_id=pad, eos_token_id=eos, **how)


def _sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[list[int]],
    rope: RopeSwitch,
    config: GenerationConfig,
    n: int,
    seed: int,
) -> list[list[str]]:
    """As `sample_answers`, in one batch."""
    device, width, own = embedding(model).device, max(map(len, ids)), model.generation_config
    batch = torch.tensor([[config.pad_token_id] * (width - len(r)) + r for r in ids], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in ids], device=device)
    per_row = n if config.do_sample else 1
    # Keys of all but the last token must have the frequencies of the whole text.
    stays = rope.regime(width - 1) == rope.regime(width)
    past = _prefill(model, batch, mask, per_row) if per_row > 1 and stays else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(seed, ids))
        model.generation_config = config  # else the model's own penalties and cut-offs fill what is unset here
        try:
            out = model.generate(
                input_ids=batch.repeat_interleave(per_row, 0),
                attention_mask=mask.repeat_interleave(per_row, 0),
                generation_config=config,
                **({} if past is None else {"past_key_values": past}),
            )
        finally:
            model.generation_config = own
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    rows = [texts[i : i + per_row] for i in range(0, len(texts), per_row)]
    return rows if config.do_sample else [row * n for row in rows]


def _prefill(model: PreTrainedModel, batch: torch.Tensor, mask: torch.Tensor, n: int) -> DynamicCache | None:
    """Keys and values of all but the last token of each text, run once and repeated for its n answers.

    None for models that keep something else than keys and values of all tokens; they run each text n times.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    takes = inspect.signature(model.forward).parameters
    if batch.shape[1] < 2 or not {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys():
        return None
    past = DynamicCache(config=model.config.get_text_config(decoder=True))
    if not all(type(layer) is DynamicLayer for layer in past.layers):
        return None
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]
    model(
        input_ids=batch[:, :-1], attention_mask=mask[:, :-1], position_ids=positions, past_key_values=past,
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    past.batch_repeat_interleave(n)
    return past


def _seed(seed: int, ids: list[list[int]]) -> int:
    """Seed of one batch: set by the caller's seed and by what is judged."""
    digest = hashlib.sha256(f"{seed}:{ids}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
