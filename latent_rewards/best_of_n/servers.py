"""Completions of vLLM in this process, or of a server that runs the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from latent_rewards.best_of_n.sampling import Sampling, plain_text
from latent_rewards.engine import loading
from latent_rewards.files.types import JsonObject, Prompt, as_messages

if TYPE_CHECKING:
    import httpx2
    from vllm import LLM

logger = logging.getLogger(__name__)

_CANARY = "Name a prime number."


class RefusedError(RuntimeError):
    """The server does not take this prompt."""


class PolicyFailedError(RuntimeError):
    """The policy completes nothing, so it is not the prompts; nothing of the shard was written."""


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
        self._answered = False

    @property
    def facts(self) -> JsonObject:
        """Backend, model, options, sampling. vLLM does not promise equal draws on another version or card."""
        return {"backend": "vllm", "model": self.model_name, **self.options, **asdict(self.sampling)}

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """See `Generator`.

        Raises:
            PolicyFailedError: vLLM refuses every prompt, a short one of ours too.
        """
        try:
            whole = self._generate(prompts, keys)
            self._answered = True
            return [*whole]
        except ValueError:  # one prompt that is too long stops the whole call
            out: list[list[str] | None] = []
            problems: list[Exception] = []
            for prompt, key in zip(prompts, keys, strict=True):
                try:
                    out += self._generate([prompt], [key])
                except ValueError as err:
                    out.append(None)
                    problems.append(err)
            if not (self._answered or any(out)):
                _check_alive(lambda: self._generate([_CANARY], ["canary"]))
            self._answered = True
            _warn(problems)
            return out

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
            outputs = self._llm.generate([plain_text(p) for p in prompts], params, use_tqdm=False)
        else:
            outputs = self._llm.chat([as_messages(p) for p in prompts], params, use_tqdm=False)
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
        self._answered = False

    @property
    def facts(self) -> JsonObject:
        """Backend, model, sampling; what the server does with the seed is its own affair."""
        return {"backend": "server", "model": self.model_name, **asdict(self.sampling)}

    def generate(self, prompts: Sequence[Prompt], keys: Sequence[str]) -> list[list[str] | None]:
        """See `Generator`. A prompt that the server refuses (status 400, 413 or 422) is None.

        Raises:
            PolicyFailedError: the server cannot be reached, refuses every prompt, a short one of ours too, or answers
                with fewer completions.
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
            out = list(pool.map(one, prompts, keys))
            if not (self._answered or any(out)):
                _check_alive(lambda: self._one(client, _CANARY, "canary"))
            self._answered = True
            _warn(problems)
            return out

    def _one(self, client: httpx2.Client, prompt: Prompt, key: str) -> list[str]:
        s = self.sampling
        body = {
            "model": self.model_name, "messages": as_messages(prompt), "n": s.n, "temperature": s.temperature,
            "top_p": s.top_p, "max_tokens": s.max_new_tokens, "seed": s.seed_of(key),
        } | ({"top_k": s.top_k} if s.top_k else {})  # fmt: skip
        choices = sorted(self._post(client, body)["choices"], key=lambda c: c["index"])
        if len(choices) != s.n:
            raise PolicyFailedError(f"{self.url} gave {len(choices)} completions for n={s.n} (prompt {key!r})")
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
        raise PolicyFailedError(f"no completions from {self.url}: {problem}")


def _check_alive(canary: Callable[[], object]) -> None:
    """Tell prompts that are refused, where none was taken yet, from a policy that refuses a short one, too."""
    try:
        canary()
    except (RefusedError, ValueError) as err:
        raise PolicyFailedError(f"no prompt could be completed, not even {_CANARY!r}: {err}") from err


def _warn(problems: list[Exception]) -> None:
    for problem in problems:
        logger.warning("no completions for a prompt: %s", problem)
