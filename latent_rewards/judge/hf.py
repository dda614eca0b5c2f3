"""A Hugging Face causal LM as a frozen judge."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from latent_rewards.engine import loading
from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.decoder import embedding
from latent_rewards.engine.invariant import InvariantForward
from latent_rewards.engine.sampling import sample_answers
from latent_rewards.engine.tree import TreeForward
from latent_rewards.judge import fingerprint
from latent_rewards.judge.assemble import slice_of
from latent_rewards.judge.describe import describe, warn_of_low_mass
from latent_rewards.judge.encoding import Encoded, Encoder
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.memory import Memory
from latent_rewards.judge.overflow import beyond, fit
from latent_rewards.judge.parts import SLACK, Part, content_key, plan
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.readers import Readers
from latent_rewards.judge.reading import Judge, Lens, Need, Reading, Request, Row
from latent_rewards.judge.requests import in_halves
from latent_rewards.judge.spent import Spent

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin

__all__ = ["HFJudge", "Judge", "Lens", "Need", "Reading", "Request", "Row"]

_SESSION_STATE = {
    "_lock", "_encoder", "_blocks", "_forward", "_tries", "_checked", "_told", "_memory", "_revision", "_facts",
    "readers", "forwards", "rows_read", "spent",
}  # fmt: skip


class HFJudge(Judge):
    """A Hugging Face causal LM as a frozen judge: loaded on first use, thread-safe, picklable (drops the weights).

    Args:
        model: hub id or folder of a causal LM, of a VLM (its text is read) or of a PEFT adapter (its base is loaded,
            too), "embedded" (SmolLM2-135M-Instruct), or a loaded model (then give `tokenizer`; such a judge cannot be
            pickled).
        revision: hub commit, tag or branch.
        dtype: "auto" (the checkpoint's; on CPU the faster of float32 and bfloat16, as measured), or a torch dtype.
        device: where it runs; default the accelerator of this rank, else CPU.
        device_map: Accelerate's device map, e.g. "auto" to spread a large judge; then `device` is not used.
        tp_plan: transformers' tensor-parallel plan, e.g. "auto": the judge is spread over the ranks of this run, which
            must read together; wrap it in `LockstepJudge`.
        quantization: "4bit", "8bit" or a transformers quantisation config.
        adapter: PEFT adapter of the judge, merged at load; its own tokenizer and chat template are used, where they
            were saved with it.
        attn_implementation: as in `from_pretrained`.
        max_length: most tokens the judge reads; default the model's own limit.
        on_overflow: for longer texts: "none" (no score), "error", or "truncate" (cut the middle of the completion).
        batch_tokens: most tokens in one forward batch; default 2048 on CPU, else from free memory.
        cache_bytes: most bytes of keys and values of shared prefixes kept between calls (each prompt of a batch is read
            once whatever this is).
        share_prefixes: False reads every text whole, as the reference does.
        batch_invariant: bit-identical readings for any batch, order or grouping of the same text; slower.
        compile: run the decoder blocks through `torch.compile`; pays from some hundred texts on.
        chat_template_kwargs: variables of the chat template; the default turns thinking off.
        trust_remote_code: as in `from_pretrained`; off.
        tokenizer: for a loaded model.

    Raises:
        ValueError: unknown option values; on first use, a model that cannot be read.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel = loading.EMBEDDED,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: str | Mapping[str, int | str] | None = None,
        tp_plan: str | Mapping[str, str] | None = None,
        quantization: str | QuantizationConfigMixin | None = None,
        adapter: str | None = None,
        attn_implementation: str | None = None,
        max_length: int | None = None,
        on_overflow: Literal["none", "error", "truncate"] = "none",
        batch_tokens: int | None = None,
        cache_bytes: int = 64 << 20,
        share_prefixes: bool = True,
        batch_invariant: bool = False,
        compile: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
        trust_remote_code: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if on_overflow not in ("none", "error", "truncate"):
            raise ValueError(f"on_overflow must be 'none', 'error' or 'truncate', got {on_overflow!r}")
        if not isinstance(model, str) and tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer: HFJudge(model, tokenizer=tokenizer)")
        self._given = None
        if not isinstance(model, str) and tokenizer is not None:
            self._given = cast("PreTrainedModel", loading.freeze(model)), tokenizer  # PEFT's has all that is used
        self.model_name = model if isinstance(model, str) else model.config._name_or_path or type(model).__name__
        self.max_length, self.on_overflow, self.batch_invariant = max_length, on_overflow, batch_invariant
        self._forward_options: dict[str, Any] = dict(
            batch_tokens=batch_tokens, cache_bytes=cache_bytes, share_prefixes=share_prefixes, compile=compile
        )
        self._load_options: dict[str, Any] = dict(
            revision=revision, dtype=dtype, device_map=device_map, tp_plan=tp_plan, quantization=quantization,
            adapter=adapter, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self._device, self._chat_template_kwargs = device, chat_template_kwargs
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._blocks: Blocks | None = None
        self._forward: TreeForward | None = None
        self._tries: dict[str, LabelTrie] = {}
        self._checked: set[str] = set()
        self._told: set[str] = set()
        self._memory = Memory()
        self.readers = Readers()
        self._revision: str | None = None
        self._facts: dict[str, object] | None = None
        self.forwards = 0
        self.rows_read = 0
        self.spent = Spent()

    def __getstate__(self) -> dict[str, object]:
        if self._given is not None:
            raise TypeError(
                "a judge around a loaded model cannot be pickled; give HFJudge the model's name or folder instead"
            )
        return {k: v for k, v in self.__dict__.items() if k not in _SESSION_STATE}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"HFJudge({self.model_name!r})"

    @property
    def name(self) -> str:
        """Last part of the model's name or folder."""
        return self.model_name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def capabilities(self) -> frozenset[str]:
        """Everything a judge can give."""
        return frozenset({"labels", "hidden", "layer_logits", "target", "generate"})

    @property
    def encoder(self) -> Encoder:
        """The tokenizer side; loads the tokenizer, not the model."""
        with self._lock:
            if self._encoder is None:
                tokenizer = self._given[1] if self._given else self._load_tokenizer()
                self._encoder = Encoder(tokenizer, chat_template_kwargs=self._chat_template_kwargs)
            return self._encoder

    @property
    def blocks(self) -> Blocks:
        """The loaded model; loads and checks it on first use."""
        with self._lock:
            if self._blocks is None:
                device = torch.device(self._device) if self._device is not None else loading.default_device()
                name, options = self.model_name, self._load_options
                blocks = Blocks(self._given[0] if self._given else loading.load_frozen(name, device=device, **options))
                blocks.self_check()
                self._blocks = blocks
            return self._blocks

    @property
    def forward(self) -> TreeForward:
        """What runs the model; built on first use."""
        with self._lock:
            if self._forward is None:
                kind = InvariantForward if self.batch_invariant else TreeForward
                self._forward = kind(self.blocks, **self._forward_options)
            return self._forward

    @property
    def revision(self) -> str:
        """Hub commit of the weights, or a hash of local ones; loads the model."""
        if self._revision is None:
            self._revision = loading.model_revision(self.blocks.model, self.model_name)
        return self._revision

    @property
    def facts(self) -> dict[str, object]:
        """All that changes readings by more than rounding, as plain data; loads the model.

        In: the weights (the hub's commit; else every bit of them, adapter included), precision, configuration,
        tokenizer, chat template as it renders, length limit. `attn_implementation` and `batch_invariant` are in, too:
        kernels differ in the masks that they know, and bit-identical readings must not mix with others. Out, since they
        move a reading by rounding alone and a run may go on elsewhere: device and its map, `batch_tokens`,
        `cache_bytes`, `share_prefixes`, `compile`, the version of torch; and name and folder, which change nothing.
        """
        with self._lock:
            if self._facts is None:
                exact = self._given is None and self._load_options["adapter"] is None
                commit = getattr(self.blocks.model.config, "_commit_hash", None) if exact else None
                model = fingerprint.model_facts(self.blocks.model, commit)
                self._facts = {"tokenizer": fingerprint.tokenizer_hash(self.encoder.tokenizer), "model": model}
        return fingerprint.software() | self._facts | {
            "layout": self.encoder.layout_hash(JudgePrompt.load("weighted")), "max_length": self._limit(),
            "on_overflow": self.on_overflow, "batch_invariant": self.batch_invariant,
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Hash of `facts`: what caches keep this judge's readings under."""
        return fingerprint.digest(self.facts)

    @property
    def arithmetic(self) -> str:
        """Precision of the weights and why it was taken, in a line; loads the model."""
        return loading.arithmetic_of(self.blocks.model)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks, L; loads the model."""
        return self.blocks.n_layers

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Fail now, not in the training loop: labels must be distinct in this tokenizer.

        Raises:
            ValueError: the prompt has no labels or no target, or labels collide; names the prompt file.
        """
        need.check(prompt)
        if need.labels or need.layer_logits:
            self.trie(prompt)

    def describe(self, prompt: str | Path | JudgePrompt = "weighted") -> str:
        """What is used of this judge and how, and a self-check of three texts: one screen, for people.

        Args:
            prompt: a prompt with labels, as in `JudgePrompt.load`.

        Raises:
            ValueError: the judge or the prompt cannot be used; the message says why.
        """
        loaded = JudgePrompt.load(prompt)
        if loaded.labels is None:
            raise ValueError(f"prompt {loaded.name!r} has no labels to read (kind {loaded.kind!r})")
        return describe(self, loaded)

    def to(self, device: str | torch.device) -> HFJudge:
        """Move the loaded judge: to "cpu" while the policy trains on the same card, and back before the next step."""
        with self._lock:
            self.blocks.model.to(torch.device(device))  # type: ignore[arg-type]
            if (cache := getattr(self._forward, "cache", None)) is not None:
                cache.clear()
        return self

    def forget(self) -> None:
        """Drop remembered readings, so that the next one depends on its own batch alone, to the last bit."""
        with self._lock:
            self._memory.clear()

    def trie(self, prompt: JudgePrompt) -> LabelTrie:
        """The prompt's labels in this judge's tokenizer."""
        if prompt.hash not in self._tries:
            self._tries[prompt.hash] = self.encoder.trie(prompt)
        return self._tries[prompt.hash]

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Read B rows of each request, all in one forward; the same rows again cost nothing.

        What the texts of several prompts share, such as all up to the question, runs once.

        Args:
            requests: (prompt, rows, need) each; the rows may differ, but the same rows in each share most.

        Returns:
            A reading for each request; rows longer than `max_length` are NaN unless `on_overflow` says otherwise. It is
            the same, up to rounding, as if the request were alone.

        Raises:
            ValueError: a row lacks a slot, or is too long with `on_overflow="error"`; the message has the row number.
            torch.OutOfMemoryError: a row alone is too much; more of them are read in halves.
        """
        with self.spent.on("encoding"):
            encoded = [self._encode(r.prompt, r.rows) for r in requests]
        keys = [content_key(r.prompt, e) for r, (e, _) in zip(requests, encoded, strict=True)]
        with self._lock:
            known, todo = self._memory.look(keys, [r.need for r in requests])
            out = {i: replace(reading, reasons=tuple(encoded[i][1])) for i, reading in known.items()}
            parts = []
            for same in todo.values():
                need = functools.reduce(operator.or_, (requests[i].need for i in same))
                parts.append(Part(self._labels(requests[same[0]].prompt, need), need, *encoded[same[0]]))
            for same, part, reading in zip(todo.values(), parts, self._read(parts), strict=True):
                self._memory.keep(keys[same[0]], part.need, reading)
                out |= dict.fromkeys(same, reading)
                warn_of_low_mass(self.name, requests[same[0]].prompt, reading, self._told)
            self._memory.trim(len(requests))
        return [out[i] for i in range(len(requests))]

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """N sampled answers per row (temperature 0: one greedy answer, repeated). Global random state is untouched.

        Returns:
            B lists of n texts; None for rows that are too long.
        """
        key = prompt.hash, list(rows), n, temperature, max_new_tokens, seed
        with self._lock:
            if (known := self._memory.answers(key)) is not None:
                return known
            options = {"temperature": temperature, "seed": seed}
            parts = in_halves(
                lambda a, b: self._generate(prompt, rows[a:b], n, max_new_tokens, options), len(rows), self.name
            )
            return self._memory.keep_answers(key, [answers for part in parts for answers in part])

    def _generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], n: int, max_new_tokens: int, options: dict[str, Any]
    ) -> list[list[str | None]]:
        encoded, reasons = self._encode(prompt, rows)
        out: list[list[str | None]] = [[None] * n for _ in rows]
        fits = sorted((i for i, r in enumerate(reasons) if r is None), key=lambda i: len(encoded[i].ids))
        while fits:
            longest = len(encoded[fits[-1]].ids) + max_new_tokens
            take = max(1, self.forward.batch_tokens // (longest * n))
            batch, fits = fits[-take:], fits[:-take]
            ids = [encoded[i].ids for i in batch]
            texts = sample_answers(
                self.blocks.model, self.encoder.tokenizer, ids, n=n, max_new_tokens=max_new_tokens, **options
            )
            for i, answers in zip(batch, texts, strict=True):
                out[i] = list(answers)
        return out

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        options = {k: self._load_options[k] for k in ("revision", "trust_remote_code", "adapter")}
        return loading.load_tokenizer(self.model_name, **options)

    def _limit(self) -> int:
        return self.blocks.longest_text if self.max_length is None else self.max_length

    def _encode(self, prompt: JudgePrompt, rows: Sequence[Row]) -> tuple[list[Encoded], list[str | None]]:
        limit = self._limit() - (self.trie(prompt).depth if prompt.labels else 0)
        encoded = self.encoder.encode(prompt.render_all(rows))
        return fit(encoded, limit=limit, vocabulary=self._check_ids(prompt), on_overflow=self.on_overflow)

    def _check_ids(self, prompt: JudgePrompt) -> int:
        """Rows of the judge's embedding; once per prompt, that they suffice for the template and the labels."""
        size = len(embedding(self.blocks.model))
        if prompt.hash not in self._checked:
            if reason := beyond(sorted(self.encoder.own_ids(prompt)), size):
                raise ValueError(
                    f"the chat template or the labels of prompt {prompt.name!r} need {reason}; use the tokenizer that "
                    "belongs to the model, or model.resize_token_embeddings(len(tokenizer)) and train the new rows"
                )
            self._checked.add(prompt.hash)
        return size

    def _labels(self, prompt: JudgePrompt, need: Need) -> LabelTrie:
        need.check(prompt)
        return self.trie(prompt) if need.labels or need.layer_logits else LabelTrie(0, (), ())

    def _read(self, parts: list[Part]) -> list[Reading]:
        """One forward over all parts, or several where memory does not last."""
        if not parts:
            return []
        longest = max(len(part.reasons) for part in parts)
        pieces = in_halves(functools.partial(self._forward_of, parts), longest, self.name)
        self.rows_read += sum(len(part.reasons) for part in parts)
        return pieces[0] if len(pieces) == 1 else [Reading.join(same) for same in zip(*pieces, strict=True)]

    def _forward_of(self, whole: list[Part], first: int, end: int) -> list[Reading]:
        parts = [part.rows(first, end) for part in whole]
        work = plan(parts, self.blocks.n_layers)
        states, forward, device = States(), self.forward, self.blocks.device
        if work.sequences:
            self.forwards += 1
            wanted: dict[str, Any] = {"layers": work.layers, "final": work.final}
            shared = {"head": work.head, "keepable": [at[1] + SLACK for at in work.cuts]}
            wanted |= {"cuts": work.cuts} if isinstance(forward, InvariantForward) else shared
            with self.spent.on("forward", device):
                states = forward.read(work.sequences, work.positions, **wanted)
        with self.spent.on("readout", device):
            return [
                part.reading(self.blocks, slice_of(states, *span), alone=self.batch_invariant)
                for part, span in zip(parts, work.spans, strict=True)
            ]
