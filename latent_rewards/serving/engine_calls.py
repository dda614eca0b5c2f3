"""The HTTP calls of engines that people run: log-probabilities of the next token, name and limits.

Sources: vLLM `entrypoints/openai/completion/protocol.py` (0.32), SGLang `managers/tokenizer_manager_score_mixin.py`,
llama.cpp `tools/server/README.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_rewards.serving.transport import JudgeServerError

if TYPE_CHECKING:
    from latent_rewards.serving.engines import Engine


class Next(NamedTuple):
    """What an engine told of the next token: log-probabilities by id, and an upper bound for ids it left out."""

    logprobs: dict[int, float]
    floor: float = -math.inf


def vllm(engine: Engine, sequences: list[list[int]], children: list[int]) -> list[Next]:
    """`POST /v1/completions` with `logprob_token_ids` (at most 128), or with the most likely tokens."""
    asked = engine.chosen_ids is not False
    k = engine.top_logprobs or 20
    merged: list[Next] = [Next({}) for _ in sequences]
    for start in range(0, len(children) if asked else 1, 128):
        payload: dict[str, Any] = {
            "model": engine.model, "prompt": sequences, "max_tokens": 1, "temperature": 1.0, "top_p": 1.0,
            "logprobs": 1 if asked else k, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        if asked:
            payload["logprob_token_ids"] = children[start : start + 128]
        answer = engine.transport.request("POST", "/v1/completions", payload)
        choices = sorted(answer["choices"], key=lambda c: c["index"])
        if len(choices) != len(sequences):
            raise JudgeServerError(f"{len(choices)} choices for {len(sequences)} prompts")
        for i, choice in enumerate(choices):
            (step,) = choice["logprobs"]["top_logprobs"]
            found = {int(key.removeprefix("token_id:")): float(value) for key, value in step.items()}
            floor = -math.inf if asked and set(payload["logprob_token_ids"]) <= set(found) else min(found.values())
            merged[i] = Next(merged[i].logprobs | found, max(merged[i].floor, floor))
    return merged


def vllm_targets(engine: Engine, texts: list[tuple[list[int], int]]) -> list[list[float]]:
    """`POST /v1/completions` with `prompt_logprobs`: the log-probability of every token from the text's second on.

    Args:
        engine: which.
        texts: token ids, and the first token wanted.
    """
    payload = {
        "model": engine.model, "prompt": [ids for ids, _ in texts], "max_tokens": 1, "temperature": 1.0,
        "prompt_logprobs": 1,
    }  # fmt: skip
    choices = sorted(engine.transport.request("POST", "/v1/completions", payload)["choices"], key=lambda c: c["index"])
    if len(choices) != len(texts) or any(c.get("prompt_logprobs") is None for c in choices):
        raise JudgeServerError(f"{len(choices)} choices for {len(texts)} prompts, or none with `prompt_logprobs`")
    return [
        [float(choice["prompt_logprobs"][at][str(ids[at])]["logprob"]) for at in range(start, len(ids))]
        for (ids, start), choice in zip(texts, choices, strict=True)
    ]


def sglang(engine: Engine, sequences: list[list[int]], children: list[int]) -> list[Next]:
    """`POST /v1/score`: probabilities of given ids after query and item."""
    shared = 0
    while shared < min(map(len, sequences)) - 1 and len({s[shared] for s in sequences}) == 1:
        shared += 1
    payload = {
        "model": engine.model, "query": sequences[0][:shared], "items": [s[shared:] for s in sequences],
        "label_token_ids": children, "apply_softmax": False, "item_first": False,
    }  # fmt: skip
    scores = engine.transport.request("POST", "/v1/score", payload)["scores"]
    if len(scores) != len(sequences):
        raise JudgeServerError(f"{len(scores)} scores for {len(sequences)} items")
    return [
        Next({c: math.log(p) if p > 0 else -math.inf for c, p in zip(children, row, strict=True)}) for row in scores
    ]


def llamacpp(engine: Engine, sequences: list[list[int]], children: list[int]) -> list[Next]:
    """`POST /completion`: the N most likely tokens, and more of them until all labels are found."""

    def ask(sequence: list[int]) -> Next:
        n, size = engine.top_logprobs or 256, len(engine.encoder.tokenizer)
        while True:
            payload = {
                "prompt": sequence, "n_predict": 1, "n_probs": n, "temperature": -1, "cache_prompt": True,
                "post_sampling_probs": False,
            }  # fmt: skip
            answer = engine.transport.request("POST", "/completion", payload)
            top = answer["completion_probabilities"][0]["top_logprobs"]
            found = {int(t["id"]): float(t["logprob"]) if t["logprob"] > -1e30 else -math.inf for t in top}
            complete = set(children) <= set(found)
            if complete or n >= size or len(top) < n:
                return Next(found, -math.inf if complete else min(found.values()))
            n = min(size, 16 * n)

    with ThreadPoolExecutor(engine.transport.concurrency) as pool:
        return list(pool.map(ask, sequences))


def _openai_models(engine: Engine) -> tuple[str, int | None]:
    """Name and context length from `GET /v1/models`."""
    models = engine.transport.request("GET", "/v1/models")["data"]
    names = [m["id"] for m in models]
    if engine.model is not None and engine.model not in names:
        raise ValueError(f"{engine.transport.url} serves {names}, not {engine.model!r}")
    found = next(m for m in models if engine.model in (None, m["id"]))
    return found["id"], found.get("max_model_len")


def _llamacpp_props(engine: Engine) -> tuple[str, int | None]:
    """Name and context length of a slot from `GET /props`."""
    props = engine.transport.request("GET", "/props")
    name = str(props.get("model_path") or "llama.cpp").rsplit("/", 1)[-1].removesuffix(".gguf")
    return name, (props.get("default_generation_settings") or {}).get("n_ctx")


ENGINES: dict[str, Callable[[Engine, list[list[int]], list[int]], list[Next]]] = {
    "vllm": vllm, "sglang": sglang, "llamacpp": llamacpp,
}  # fmt: skip
# Those that are asked for the log-probabilities of a prompt's own tokens.
TARGETS: dict[str, Callable[[Engine, list[tuple[list[int], int]]], list[list[float]]]] = {"vllm": vllm_targets}
DESCRIBE: dict[str, Callable[[Engine], tuple[str, int | None]]] = {
    "vllm": _openai_models, "sglang": _openai_models, "llamacpp": _llamacpp_props,
}  # fmt: skip
