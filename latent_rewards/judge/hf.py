"""A Hugging Face causal LM as a frozen judge."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from latent_rewards.engine import loading
from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.invariant import InvariantForward
from latent_rewards.engine.sampling import sample_answers
from latent_rewards.engine.tree import TreeForward
from latent_rewards.files.sources import RowError
from latent_rewards.judge import fingerprint
from latent_rewards.judge.assemble import assemble, assemble_alone, states_needed
from latent_rewards.judge.describe import LOW_MASS, describe
from latent_rewards.judge.encoding import Encoded, Encoder
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Lens, Need, Reading, Request, Row, unread

logger = logging.getLogger(__name__)

__all__ = ["HFJudge", "Judge", "Lens", "Need", "Reading", "Request", "Row"]

_SLACK = (
    8  # completions of one prompt may begin alike; a shared prefix that reaches so far into them is still the prompt
)
_SESSION_STATE = {
    "_lock", "_encoder", "_blocks", "_forward", "_tries", "_checked", "_told", "_remembered", "_revision", "_facts",
    "forwards", "rows_read", "seconds",
}  # fmt: skip


class HFJudge:
    """A Hugging Face causal LM as a frozen judge: loaded on first use, thread-safe, picklable (drops the weights).

    Args:
        model: hub id or folder of a causal LM, of a VLM (its text is read) or of a PEFT adapter (its base is loaded,
            too), "embedded" (SmolLM2-135M-Instruct), or a loaded model (then give `tokenizer`; such a judge cannot be
            pickled).
        revision: hub commit, tag or branch.
        dtype: "auto" (the checkpoint's; on CPU bfloat16 where the processor has it, else float32), or a torch dtype.
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
        model: Any = loading.EMBEDDED,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: Any = None,
        tp_plan: Any = None,
        quantization: Any = None,
        adapter: str | None = None,
        attn_implementation: str | None = None,
        max_length: int | None = None,
        on_overflow: Literal["none", "error", "truncate"] = "none",
        batch_tokens: int | None = None,
        cache_bytes: int = 64 << 20,
        share_prefixes: bool = True,
        batch_invariant: bool = False,
        compile: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        tokenizer: Any = None,
    ) -> None:
        if on_overflow not in ("none", "error", "truncate"):
            raise ValueError(f"on_overflow must be 'none', 'error' or 'truncate', got {on_overflow!r}")
        if not isinstance(model, str) and tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer: HFJudge(model, tokenizer=tokenizer)")
        self.model_name = model if isinstance(model, str) else model.config._name_or_path or type(model).__name__
        self.name = self.model_name.rstrip("/").rsplit("/", 1)[-1]
        self.max_length, self.on_overflow, self.batch_invariant = max_length, on_overflow, batch_invariant
        self._forward_options: dict[str, Any] = dict(
            batch_tokens=batch_tokens, cache_bytes=cache_bytes, share_prefixes=share_prefixes, compile=compile
        )
        self._load_options = dict(
            revision=revision, dtype=dtype, device_map=device_map, tp_plan=tp_plan, quantization=quantization,
            adapter=adapter, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self._device, self._chat_template_kwargs = device, chat_template_kwargs
        self._given = None if isinstance(model, str) else (loading.freeze(model), tokenizer)
        self._needs: dict[str, Need] = {}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._blocks: Blocks | None = None
        self._forward: TreeForward | None = None
        self._tries: dict[str, LabelTrie] = {}
        self._checked: set[str] = set()
        self._told: set[str] = set()
        self._remembered: OrderedDict[str, tuple[Need, Reading]] = OrderedDict()
        self._revision: str | None = None
        self._facts: dict[str, Any] | None = None
        self.forwards = 0
        self.rows_read = 0
        self.seconds = 0.0

    def __getstate__(self) -> dict[str, Any]:
        if self._given is not None:
            raise TypeError(
                "a judge around a loaded model cannot be pickled; give HFJudge the model's name or folder instead"
            )
        return {k: v for k, v in self.__dict__.items() if k not in _SESSION_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"HFJudge({self.model_name!r})"

    @property
    def capabilities(self) -> frozenset[str]:
        """Everything a judge can give."""
        return frozenset({"labels", "hidden", "layer_logits", "generate"})

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
                model = (
                    self._given[0]
                    if self._given
                    else loading.load_frozen(self.model_name, device=device, **self._load_options)
                )
                blocks = Blocks(model)
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
    def facts(self) -> dict[str, Any]:
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
    def n_layers(self) -> int:
        """Number of decoder blocks, L; loads the model."""
        return self.blocks.n_layers

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Fail now, not in the training loop: labels must be distinct in this tokenizer.

        Raises:
            ValueError: the prompt has no labels, or they collide; names the prompt file.
        """
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

    def register(self, prompt: JudgePrompt, need: Need) -> None:
        """Remember that some reward will ask this of this prompt, so that one forward serves all of them."""
        with self._lock:
            before = self._needs.get(prompt.hash, Need())
            lenses_differ = before.hidden and need.hidden and before.hidden_lens != need.hidden_lens
            self._needs[prompt.hash] = before if lenses_differ else before | need

    def to(self, device: str | torch.device) -> HFJudge:
        """Move the loaded judge: to "cpu" while the policy trains on the same card, and back before the next step."""
        with self._lock:
            self.blocks.model.to(torch.device(device))
            cache = getattr(self._forward, "cache", None)
            if cache is not None:
                cache.clear()
        return self

    def forget(self) -> None:
        """Drop remembered readings, so that the next one depends on its own batch alone, to the last bit."""
        with self._lock:
            self._remembered.clear()

    def trie(self, prompt: JudgePrompt) -> LabelTrie:
        """The prompt's labels in this judge's tokenizer."""
        key = prompt.hash
        if key not in self._tries:
            self._tries[key] = self.encoder.trie(prompt)
        return self._tries[key]

    def read(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        """Read B rows in one forward; the same rows again cost nothing.

        Args:
            prompt: the judge prompt.
            rows: slot name -> text or messages.
            need: what to read.

        Returns:
            Reading with B rows; rows longer than `max_length` are NaN unless `on_overflow` says otherwise.

        Raises:
            ValueError: a row lacks a slot, or is too long with `on_overflow="error"`; the message has the row number.
        """
        if not rows:
            return unread(0, len(prompt.labels or ()), need, 0, 0, ())
        return self.read_many([Request(prompt, rows, need)])[0]

    def read_many(self, requests: Sequence[Request]) -> list[Reading]:
        """Read several prompts in one forward: what their texts share, such as all up to the question, runs once.

        Args:
            requests: (prompt, rows, need) each; the rows may differ, but the same rows in each share most.

        Returns:
            A reading for each request, as `read` gives it up to rounding.

        Raises:
            ValueError: as `read`.
        """
        encoded = [self._encode(r.prompt, r.rows) for r in requests]
        keys = [_content_key(r.prompt, e) for r, (e, _) in zip(requests, encoded, strict=True)]
        out: list[Reading | None] = [None] * len(requests)
        parts: dict[tuple[str, Lens | None], _Part] = {}
        part_of: dict[int, tuple[str, Lens | None]] = {}
        with self._lock:
            for i, (request, (ids, reasons)) in enumerate(zip(requests, encoded, strict=True)):
                known = self._remembered.get(keys[i])
                if known is not None and known[0].covers(request.need):
                    out[i] = replace(known[1], reasons=tuple(reasons))
                    continue
                need = self._with_registered(request.prompt, request.need)
                part_of[i] = keys[i], need.hidden_lens if need.hidden else None
                same = parts.get(part_of[i])
                need = need if same is None else need | same.need
                parts[part_of[i]] = self._part(request.prompt, ids, need, reasons)
            started = time.perf_counter()
            readings = dict(zip(parts, self._read(list(parts.values())), strict=True))
            for i, part in part_of.items():
                out[i] = readings[part]
                self._warn_of_low_mass(requests[i].prompt, readings[part])
                if requests[i].rows:
                    self._remembered[keys[i]] = (parts[part].need, readings[part])
            self.seconds += time.perf_counter() - started
            self.rows_read += sum(len(part.rows) for part in parts.values())
            while len(self._remembered) > max(4, len(self._needs), len(requests)):
                self._remembered.popitem(last=False)
        return [reading for reading in out if reading is not None]

    def _warn_of_low_mass(self, prompt: JudgePrompt, reading: Reading) -> None:
        """Say once for each prompt that the judge was about to say something else than a label."""
        if reading.label_mass is None or prompt.hash in self._told:
            return
        mass = reading.label_mass[~reading.label_mass.isnan()][:3]
        if len(mass):
            self._told.add(prompt.hash)
        if len(mass) and float(mass.mean()) < LOW_MASS:
            logger.warning(
                "%s, prompt %r: the labels hold %.2g of the next token's probability on its first %d texts; what the "
                "judge would say instead: judge.describe(prompt), or latent-rewards score --describe",
                self.name, prompt.name, float(mass.mean()), len(mass),
            )  # fmt: skip

    def _with_registered(self, prompt: JudgePrompt, need: Need) -> Need:
        registered = self._needs.get(prompt.hash, Need())
        lenses_differ = registered.hidden and need.hidden and registered.hidden_lens != need.hidden_lens
        return need if lenses_differ else registered | need

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        """N sampled answers per row (temperature 0: one greedy answer, repeated). Global random state is untouched.

        Returns:
            B lists of n texts; None for rows that are too long.
        """
        encoded, reasons = self._encode(prompt, rows)
        out: list[list[str | None]] = [[None] * n for _ in rows]
        fits = sorted((i for i, r in enumerate(reasons) if r is None), key=lambda i: len(encoded[i].ids))
        with self._lock:
            while fits:
                longest = len(encoded[fits[-1]].ids) + max_new_tokens
                take = max(1, self.forward.batch_tokens // (longest * n))
                batch, fits = fits[-take:], fits[:-take]
                texts = sample_answers(
                    self.blocks.model,
                    self.encoder.tokenizer,
                    [encoded[i].ids for i in batch],
                    n=n,
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                )
                for i, answers in zip(batch, texts, strict=True):
                    out[i] = list(answers)
        return out

    def _load_tokenizer(self) -> Any:
        options = {k: self._load_options[k] for k in ("revision", "trust_remote_code", "adapter")}
        return loading.load_tokenizer(self.model_name, **options)

    def _limit(self) -> int:
        if self.max_length is not None:
            return self.max_length
        return self.blocks.longest_text

    def _encode(self, prompt: JudgePrompt, rows: Sequence[Row]) -> tuple[list[Encoded], list[str | None]]:
        limit = self._limit() - (self.trie(prompt).depth if prompt.labels else 0)
        encoded = self.encoder.encode(prompt.render_all(rows))
        size = self._check_ids(prompt)
        reasons = [e.problem or _beyond(e.ids, size) for e in encoded]
        for i, e in enumerate(encoded):
            if len(e.ids) <= limit or reasons[i] is not None:
                continue
            reason = f"{len(e.ids)} tokens, but this judge reads at most {limit}"
            if self.on_overflow == "error":
                raise RowError(i, f"{reason}; shorten it, or set on_overflow='none' or 'truncate'")
            cut = _cut_middle(e, len(e.ids) - limit) if self.on_overflow == "truncate" else None
            encoded[i] = cut or e
            reasons[i] = None if cut else reason
        return encoded, reasons

    def _check_ids(self, prompt: JudgePrompt) -> int:
        """Rows of the judge's embedding; once per prompt, that they suffice for the template and the labels."""
        size = int(self.blocks.model.get_input_embeddings().weight.shape[0])
        if prompt.hash not in self._checked:
            if reason := _beyond(sorted(self.encoder.own_ids(prompt)), size):
                raise ValueError(
                    f"the chat template or the labels of prompt {prompt.name!r} need {reason}; use the tokenizer that "
                    "belongs to the model, or model.resize_token_embeddings(len(tokenizer)) and train the new rows"
                )
            self._checked.add(prompt.hash)
        return size

    def _part(self, prompt: JudgePrompt, encoded: list[Encoded], need: Need, reasons: list[str | None]) -> _Part:
        trie = self.trie(prompt) if need.labels or need.layer_logits else LabelTrie(0, (), ())
        texts: dict[tuple[int, ...], int] = {}
        rows = [
            None if reason is not None else texts.setdefault(tuple(e.ids), len(texts))
            for e, reason in zip(encoded, reasons, strict=True)
        ]
        fits = [e for e, row in zip(encoded, rows, strict=True) if row is not None]
        return _Part(trie, need, rows, reasons, texts, fits)

    def _read(self, parts: list[_Part]) -> list[Reading]:
        """One forward over all parts."""
        sequences: list[list[int]] = []
        positions: list[list[int]] = []
        cuts: list[tuple[int, ...]] = []
        layers: set[int] = set()
        final, ends = False, [0]
        for part in parts:
            chains = part.trie.chains()
            ends_at = {tuple(e.ids): _cuts(e) for e in part.fits}
            sequences += [[*ids, *chain] for ids in part.texts for chain, _ in chains]
            positions += [
                [len(ids) - 1 + len(part.trie.contexts[c]) for c in at] for ids in part.texts for _, at in chains
            ]
            cuts += [ends_at[ids] for ids in part.texts for _ in chains]
            inner, to_the_end = states_needed(part.need, self.blocks.n_layers)
            layers |= set(inner) if part.texts else set()
            final |= to_the_end and bool(part.texts)
            ends.append(sum(map(len, positions)))
        states = States()
        if sequences:
            self.forwards += 1
            wanted: dict[str, Any] = {"layers": sorted(layers), "final": final}
            if isinstance(self.forward, InvariantForward):
                states = self.forward.read(sequences, positions, cuts=cuts, **wanted)
            else:
                head = _shared_head([e for part in parts for e in part.fits])
                keepable = [at[1] + _SLACK for at in cuts]
                states = self.forward.read(sequences, positions, head=head, keepable=keepable, **wanted)
        return [self._reading(part, states, *ends[i : i + 2]) for i, part in enumerate(parts)]

    def _reading(self, part: _Part, states: States, first: int, end: int) -> Reading:
        """The reading of one part, from its stretch of the states."""
        blocks = self.blocks
        if not part.texts:
            n, width = len(part.rows), blocks.config.hidden_size
            return unread(n, part.trie.n_labels, part.need, blocks.n_layers, width, part.reasons)
        final = None if states.final is None else states.final[first:end]
        own = States(final, {layer: x[first:end] for layer, x in states.inner.items()})
        made = assemble_alone if self.batch_invariant else assemble
        return made(blocks, part.trie, own, part.need, part.rows, part.reasons)


class _Part(NamedTuple):
    """One request, encoded: `rows` point into `texts`, the distinct token sequences; `fits` are those that are read."""

    trie: LabelTrie
    need: Need
    rows: list[int | None]
    reasons: list[str | None]
    texts: dict[tuple[int, ...], int]
    fits: list[Encoded]


def _cuts(encoded: Encoded) -> tuple[int, int, int, int]:
    """Ends of the pieces of a text: the judge's head, the prompt, the completion, the question."""
    begin, end = encoded.completion
    total = len(encoded.ids)
    return min(encoded.head, begin or total), begin or total, end or total, total


def _shared_head(encoded: list[Encoded]) -> int:
    """Length of the prompt's constant head: what comes before untrusted text, as far as all rows agree."""
    first = encoded[0].ids[: min(e.head for e in encoded)]
    while first and any(e.ids[: len(first)] != first for e in encoded):
        first.pop()
    return len(first)


def _cut_middle(encoded: Encoded, surplus: int) -> Encoded | None:
    """Drop `surplus` tokens from the middle of the completion; None when it has too few."""
    start, end = encoded.completion
    if end - start <= surplus:
        return None
    keep = end - start - surplus
    left = start + (keep + 1) // 2
    ids = encoded.ids[:left] + encoded.ids[left + surplus :]
    return replace(encoded, ids=ids, completion=(start, end - surplus))


def _beyond(ids: Sequence[int], size: int) -> str | None:
    """Names the first token id that an embedding of `size` rows lacks."""
    high = next((i for i in ids if i >= size), None)
    return None if high is None else f"token id {high}, but the judge's embedding has {size} rows"


def _content_key(prompt: JudgePrompt, encoded: list[Encoded]) -> str:
    digest = hashlib.sha256(prompt.hash.encode())
    for e in encoded:
        digest.update(len(e.ids).to_bytes(8, "little") + torch.tensor(e.ids, dtype=torch.int32).numpy().tobytes())
    return digest.hexdigest()
