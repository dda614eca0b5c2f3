"""Completions of a policy behind one small interface: transformers, vLLM in this process, or a server that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, cast

import torch

from latent_rewards.best_of_n.sampling import Generator, Sampling, plain_text
from latent_rewards.best_of_n.servers import ServerGenerator, VLLMGenerator
from latent_rewards.engine import loading
from latent_rewards.engine.sampling import sample_answers
from latent_rewards.files.types import JsonObject, Prompt, as_messages
from latent_rewards.judge import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HFGenerator:
    """A transformers model in this process, on CPU or an accelerator.

    Args:
        model: hub id, folder, or "embedded".
        sampling: how to draw.
        dtype: as for `HFJudge`.
        device: default the accelerator of this rank, else CPU.
        revision: hub commit, tag or branch.
        batch_tokens: most tokens of prompts and completions in one batch; fixed, since a batch shares its random draws.
        trust_remote_code: as in `from_pretrained`; off.
    """

    def __init__(
        self,
        model: str,
        sampling: Sampling | None = None,
        *,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        batch_tokens: int = 16_384,
        trust_remote_code: bool = False,
    ) -> None:
        self.model_name, self.sampling, self.batch_tokens = model, sampling or Sampling(), batch_tokens
        self._dtype, self._device, self._revision, self._trust = dtype, device, revision, trust_remote_code
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def facts(self) -> JsonObject:
        """Backend, model, its weights and configuration, precision, chat template as it renders, sampling."""
        model, tokenizer = self._load()
        commit = getattr(model.config, "_commit_hash", None)
        return {
            "backend": "hf", "model": self.model_name, "revision": loading.model_revision(model, self.model_name),
            "facts": fingerprint.model_facts(model, commit), "tokenizer": fingerprint.tokenizer_hash(tokenizer),
            "layout": fingerprint.digest([int(i) for i in _encode(tokenizer, "x")]),
            "dtype": str(model.dtype), "batch_tokens": self.batch_tokens, **asdict(self.sampling),
        }  # fmt: skip

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """See `Generator`. Prompts are batched in the order given; None where prompt and completion are too long."""
        model, tokenizer = self._load()
        s, out = self.sampling, cast("list[list[str] | None]", [None] * len(prompts))
        ids = [_encode(tokenizer, p) for p in prompts]
        limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        fits = [i for i, tokens in enumerate(ids) if len(tokens) + s.max_new_tokens <= limit]
        for batch in _batches(fits, ids, s, self.batch_tokens):
            texts = sample_answers(
                model, tokenizer, [ids[i] for i in batch], n=s.n, temperature=s.temperature, top_p=s.top_p,
                top_k=s.top_k, max_new_tokens=s.max_new_tokens, seed=s.seed_of("\n".join(keys[i] for i in batch)),
            )  # fmt: skip
            for i, answers in zip(batch, texts, strict=True):
                out[i] = answers
        return out

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._loaded is None:
            device = torch.device(self._device) if self._device else loading.default_device()
            model = loading.load_frozen(
                self.model_name, revision=self._revision, dtype=self._dtype, device=device, device_map=None,
                tp_plan=None, quantization=None, adapter=None, attn_implementation=None, trust_remote_code=self._trust,
            )  # fmt: skip
            tokenizer = loading.load_tokenizer(self.model_name, revision=self._revision, trust_remote_code=self._trust)
            self._loaded = (model, tokenizer)
        return self._loaded


def build_generator(
    backend: Literal["hf", "vllm", "server"], model: str, sampling: Sampling, **options: object
) -> Generator:
    """A generator by the name of its backend.

    Raises:
        ValueError: unknown backend or option.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown generation backend {backend!r}; known are {sorted(BACKENDS)}")
    try:
        return BACKENDS[backend](model, sampling, **options)
    except TypeError as err:
        raise ValueError(f"generation backend {backend!r}: {err}") from err


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    from transformers import BatchEncoding

    if tokenizer.chat_template is None:
        return list(tokenizer(plain_text(prompt))["input_ids"])
    encoded = tokenizer.apply_chat_template(as_messages(prompt), add_generation_prompt=True, return_dict=True)
    assert isinstance(encoded, BatchEncoding)
    return list(encoded["input_ids"])


def _batches(fits: list[int], ids: list[list[int]], sampling: Sampling, batch_tokens: int) -> list[list[int]]:
    """Runs of prompts whose padded prompts and completions stay within `batch_tokens`; at least one each."""
    out: list[list[int]] = []
    for i in fits:
        batch = [*out[-1], i] if out else [i]
        width = max(len(ids[j]) for j in batch) + sampling.max_new_tokens
        if out and width * sampling.n * len(batch) <= batch_tokens:
            out[-1] = batch
        else:
            out.append([i])
    return out


BACKENDS: dict[str, Callable[..., Generator]] = {"hf": HFGenerator, "vllm": VLLMGenerator, "server": ServerGenerator}
