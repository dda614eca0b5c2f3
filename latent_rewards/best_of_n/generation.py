"""Completions of a policy behind one small interface: transformers, vLLM in this process, or a server that runs it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch

from latent_rewards.engine import loading
from latent_rewards.engine.sampling import sample_answers
from latent_rewards.files.types import JsonObject, Prompt
from latent_rewards.judge import fingerprint

if TYPE_CHECKING:
    import httpx2
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        n: completions per prompt.
        temperature: 0 is greedy, where all n are the same.
        top_p: smallest set of tokens that holds this share of the probability.
        top_k: most probable tokens only; 0 takes all.
        max_new_tokens: longest completion, tokens.
        seed: with a prompt and its key it decides the draws, on one backend and one kind of machine.
    """

    n: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.max_new_tokens < 1:
            raise ValueError(f"need n >= 1 and max_new_tokens >= 1, got {self.n} and {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "need temperature >= 0, top_p in (0, 1] and top_k >= 0, got "
                f"{self.temperature}, {self.top_p} and {self.top_k}"
            )

    def seed_of(self, key: str) -> int:
        """A 31-bit seed for the prompt of this key."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4], "little") >> 1


class RefusedError(RuntimeError):
    """The server does not take this prompt."""


class Generator(Protocol):
    """Draws N completions per prompt."""

    sampling: Sampling

    @property
    def facts(self) -> JsonObject:
        """What the completions depend on, as plain data, for manifests; loads the model where it must."""
        ...

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """N completions of each of B prompts, None for one that the model cannot take.

        `keys` (B, distinct) name the prompts and enter their seeds.
        """
        ...


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


class VLLMGenerator:
    """vLLM's `LLM` in this process: one request per prompt, each with a seed of its own.

    Args:
        model: hub id or folder.
        sampling: how to draw.
        **options: of `vllm.LLM`, such as `tensor_parallel_size` and `gpu_memory_utilization` (leave room for a judge on
            the same card).
    """

    def __init__(self, model: str, sampling: Sampling | None = None, **options: object) -> None:
        self.model_name, self.sampling, self.options = model, sampling or Sampling(), options
        self._llm: LLM | None = None

    @property
    def facts(self) -> JsonObject:
        """Backend, model, options, sampling. vLLM does not promise equal draws on another version or card."""
        return {"backend": "vllm", "model": self.model_name, **self.options, **asdict(self.sampling)}

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """See `Generator`.

        Raises:
            RuntimeError: vLLM refuses every prompt.
        """
        try:
            return [*self._generate(prompts, keys)]
        except ValueError:  # one prompt that is too long stops the whole call
            out: list[list[str] | None] = []
            problems: list[Exception] = []
            for prompt, key in zip(prompts, keys, strict=True):
                try:
                    out += self._generate([prompt], [key])
                except ValueError as err:
                    out.append(None)
                    problems.append(err)
            return _all_or_raise(out, problems)

    def _generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str]]:
        from vllm import LLM, SamplingParams

        if self._llm is None:
            self._llm = LLM(model=loading.resolve_model(self.model_name), **self.options)
        s = self.sampling
        params = [
            SamplingParams(
                n=s.n, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k or -1, max_tokens=s.max_new_tokens,
                seed=s.seed_of(key),
            )
            for key in keys
        ]  # fmt: skip
        if self._llm.get_tokenizer().chat_template is None:
            outputs = self._llm.generate([_plain(p) for p in prompts], params, use_tqdm=False)
        else:
            outputs = self._llm.chat([_messages(p) for p in prompts], params, use_tqdm=False)
        return [[o.text for o in request.outputs] for request in outputs]


class ServerGenerator:
    """An OpenAI-compatible server (vLLM, SGLang, ...): `POST {url}/chat/completions`.

    Args:
        model: name under which the server knows the model.
        sampling: how to draw.
        url: up to and with /v1.
        concurrency: requests under way.
        retries: further tries of a request that found no server or a 5xx or 429 answer, after 1, 2, 4, ... seconds.
        timeout: seconds for one request.
        headers: further HTTP headers, such as an authorisation.
    """

    def __init__(
        self,
        model: str,
        sampling: Sampling | None = None,
        *,
        url: str = "http://localhost:8000/v1",
        concurrency: int = 32,
        retries: int = 5,
        timeout: float = 600.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.model_name, self.sampling, self.url = model, sampling or Sampling(), url.rstrip("/")
        self.concurrency, self.retries, self.timeout, self.headers = concurrency, retries, timeout, dict(headers or {})

    @property
    def facts(self) -> JsonObject:
        """Backend, model, sampling; what the server does with the seed is its own affair."""
        return {"backend": "server", "model": self.model_name, **asdict(self.sampling)}

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """See `Generator`. A prompt that the server refuses (status 400, 413 or 422) is None.

        Raises:
            RuntimeError: the server cannot be reached, refuses every prompt, or answers with fewer completions.
        """
        import httpx2

        problems: list[Exception] = []

        def one(prompt: Prompt, key: str) -> list[str] | None:
            try:
                return self._one(client, prompt, key)
            except RefusedError as err:
                problems.append(err)
                return None

        limits = httpx2.Limits(max_connections=self.concurrency)
        with (
            httpx2.Client(timeout=self.timeout, headers=self.headers, limits=limits) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            return _all_or_raise(list(pool.map(one, prompts, keys)), problems)

    def _one(self, client: httpx2.Client, prompt: Prompt, key: str) -> list[str]:
        s = self.sampling
        body = {
            "model": self.model_name, "messages": _messages(prompt), "n": s.n, "temperature": s.temperature,
            "top_p": s.top_p, "max_tokens": s.max_new_tokens, "seed": s.seed_of(key),
        } | ({"top_k": s.top_k} if s.top_k else {})  # fmt: skip
        choices = sorted(self._post(client, body)["choices"], key=lambda c: c["index"])
        if len(choices) != s.n:
            raise RuntimeError(f"{self.url} gave {len(choices)} completions for n={s.n} (prompt {key!r})")
        return [c["message"]["content"] or "" for c in choices]

    def _post(self, client: httpx2.Client, body: JsonObject) -> JsonObject:
        import httpx2

        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            try:
                answer = client.post(f"{self.url}/chat/completions", json=body)
            except httpx2.TransportError as err:
                problem = f"{type(err).__name__}: {err}"
                continue
            if answer.status_code < 300:
                return dict(answer.json())
            problem = f"status {answer.status_code}: {answer.text[:300]}"
            if answer.status_code in (400, 413, 422):
                raise RefusedError(problem)
            if answer.status_code < 500 and answer.status_code != 429:
                break
        raise RuntimeError(f"no completions from {self.url}: {problem}")


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


def _messages(prompt: Prompt) -> list[JsonObject]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]


def _plain(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(str(m["content"]) for m in prompt)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    from transformers import BatchEncoding

    if tokenizer.chat_template is None:
        return list(tokenizer(_plain(prompt))["input_ids"])
    encoded = tokenizer.apply_chat_template(_messages(prompt), add_generation_prompt=True, return_dict=True)
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


def _all_or_raise(out: list[list[str] | None], problems: list[Exception]) -> list[list[str] | None]:
    """One refused prompt is its own fault; when all of several are refused, something else is."""
    if problems and len(out) > 1 and not any(out):
        raise RuntimeError(f"no prompt could be completed: {problems[0]}") from problems[0]
    for problem in problems:
        logger.warning("no completions for a prompt: %s", problem)
    return out


BACKENDS: dict[str, Callable[..., Generator]] = {"hf": HFGenerator, "vllm": VLLMGenerator, "server": ServerGenerator}
