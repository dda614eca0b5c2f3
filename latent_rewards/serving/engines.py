"""Label probabilities from engines that people already run: vLLM, SGLang, llama.cpp. Token ids go in, so that untrusted
text stays plain characters and labels of several tokens stay exact. How each is asked: `engine_calls`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from latent_rewards.engine import loading
from latent_rewards.judge import fingerprint
from latent_rewards.judge.encoding import Encoded, Encoder
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Request, Row
from latent_rewards.serving.engine_calls import DESCRIBE, ENGINES, TARGETS, Next, vllm
from latent_rewards.serving.transport import Transport

__all__ = ["ENGINES", "Engine", "Next"]

logger = logging.getLogger(__name__)


class Engine:
    """Reads label log-probabilities through another engine's HTTP interface.

    A label of several tokens costs one more request per inner node of the label trie, whose prompt is in the engine's
    prefix cache by then.

    Args:
        transport: of the engine.
        engine: a key of `ENGINES`.
        tokenizer: name or folder of the judge's tokenizer, or a tokenizer.
        model: the model's name on that server; default the first that it lists.
        max_length: most tokens of a text; default what the engine says.
        top_logprobs: how many most likely tokens to ask for where the engine cannot be asked for given ids.
        missing_tolerance: most probability, relative to that of the labels found, that labels missing from the most
            likely tokens may hold together; beyond it a row has no score. Labels missing within it count as 0.
        chat_template_kwargs: as for `HFJudge`.
        trust_remote_code: as for `HFJudge`.
        batch: texts per request.

    Raises:
        ValueError: unknown engine, or no tokenizer.
    """

    def __init__(
        self,
        transport: Transport,
        engine: str,
        *,
        tokenizer: Any = None,
        model: str | None = None,
        max_length: int | None = None,
        top_logprobs: int | None = None,
        missing_tolerance: float = 1e-3,
        chat_template_kwargs: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        batch: int = 32,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"unknown engine {engine!r}; known are {['latent-rewards', *ENGINES]}")
        if tokenizer is None:
            raise ValueError(f"engine {engine!r} takes token ids: give the judge's tokenizer, tokenizer='org/model'")
        self.transport, self.engine, self.tokenizer = transport, engine, tokenizer
        self.model, self.max_length, self.top_logprobs = model, max_length, top_logprobs
        self.missing_tolerance, self.batch = missing_tolerance, batch
        self.chat_template_kwargs, self.trust_remote_code = chat_template_kwargs, trust_remote_code
        self.chosen_ids: bool | None = None
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoder": None}

    @property
    def encoder(self) -> Encoder:
        """The judge's tokenizer, here."""
        if self._encoder is None:
            tokenizer = self.tokenizer
            if isinstance(tokenizer, str):
                tokenizer = loading.load_tokenizer(tokenizer, revision=None, trust_remote_code=self.trust_remote_code)
            self._encoder = Encoder(tokenizer, chat_template_kwargs=self.chat_template_kwargs)
        return self._encoder

    def info(self) -> dict[str, Any]:
        """The engine's model and limits, and whether it gives the log-probabilities of chosen ids.

        It tells no revision, so that its fingerprint holds its URL: another server may hold other weights of that name.
        """
        name, limit = DESCRIBE[self.engine](self)
        self.model = self.model or name
        self.max_length = self.max_length or limit
        if self.chosen_ids is None:
            self.chosen_ids = self.engine == "sglang" or (self.engine == "vllm" and self._gives_chosen_ids())
        short = str(self.model).rstrip("/").rsplit("/", 1)[-1]
        about = {
            "engine": self.engine, "url": self.transport.url, "model": str(self.model), "max_length": self.max_length,
            "chosen_ids": self.chosen_ids, "top_logprobs": self.top_logprobs, "tolerance": self.missing_tolerance,
            "tokenizer": fingerprint.tokenizer_hash(self.encoder.tokenizer),
            "layout": self.encoder.layout_hash(JudgePrompt.load("weighted")), **fingerprint.software(),
        }  # fmt: skip
        return {
            "judge": short, "revision": None, "fingerprint": fingerprint.digest(about), "layers": 0, "width": 1,
            "capabilities": ["labels", *(["target"] if self.engine in TARGETS else [])],
        }  # fmt: skip

    def _gives_chosen_ids(self) -> bool:
        """Servers older than vLLM's `logprob_token_ids` ignore it in silence: ask for unlikely ids and look."""
        size = len(self.encoder.tokenizer)
        ids = sorted({size // 7, size // 5, size // 3, size // 2})
        (found,) = vllm(self, [[ids[0]]], ids)
        good = set(ids) <= set(found.logprobs)
        if not good:
            logger.warning(
                "%s does not give log-probabilities of chosen ids; asking for its %d most likely tokens instead",
                self.transport.url, self.top_logprobs or 20,
            )  # fmt: skip
        return good

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Labels, which must be distinct in this tokenizer, and the tokens of targets where the engine tells them."""
        need.check(prompt)
        if need.hidden or need.layer_logits:
            raise ValueError(f"engine {self.engine!r} gives label probabilities only, not hidden states or layers")
        if need.target and self.engine not in TARGETS:
            raise ValueError(
                f"engine {self.engine!r} is not asked for the log-probabilities of a prompt's tokens; {list(TARGETS)} "
                "and our own judge server (latent-rewards serve) are, or use an HFJudge"
            )
        if not need.target:
            self.encoder.trie(prompt)

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Exact label log-probabilities, one request after the other; what they share is the engine's to cache."""
        return [self._read_rows(*request) for request in requests]

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        """Not offered."""
        raise ValueError(f"engine {self.engine!r} is read, not sampled; use a judge server or an HFJudge")

    def _read_rows(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        if self.chosen_ids is None:
            self.info()
        self.check(prompt, need)
        if need.target:
            return self._read_targets(prompt, rows)
        trie = self.encoder.trie(prompt)
        encoded, reasons = self._encode(prompt, rows, trie.depth)
        ids = [e.ids for e in encoded]
        texts: dict[tuple[int, ...], int] = {}
        index = [
            None if reason else texts.setdefault(tuple(text), len(texts))
            for text, reason in zip(ids, reasons, strict=True)
        ]
        logprobs, why = self._read(trie, [list(t) for t in texts])
        out = torch.full((len(rows), trie.n_labels), torch.nan)
        for row, text in enumerate(index):
            if text is None:
                continue
            reasons[row] = why[text]
            if why[text] is None:
                out[row] = logprobs[text]
        return Reading(out, out.exp().sum(-1), {}, {}, tuple(reasons))

    def _read_targets(self, prompt: JudgePrompt, rows: Sequence[Row]) -> Reading:
        """Log-probabilities of every row's target, each distinct text once."""
        encoded, reasons = self._encode(prompt, rows, 0)
        fits = [(e.ids, e.target or 0) for e, why in zip(encoded, reasons, strict=True) if why is None]
        texts = {(*ids, -start): (ids, start) for ids, start in fits}
        call, todo = TARGETS[self.engine], list(texts.values())
        parts = [todo[i : i + self.batch] for i in range(0, len(todo), self.batch)]
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            found = dict(
                zip(texts, (x for part in pool.map(lambda p: call(self, p), parts) for x in part), strict=True)
            )
        own = [
            torch.tensor(found[*e.ids, -(e.target or 0)] if why is None else [math.nan])
            for e, why in zip(encoded, reasons, strict=True)
        ]
        logprobs = pad_sequence(own, batch_first=True, padding_value=math.nan) if own else torch.zeros(0, 1)
        return Reading(reasons=tuple(reasons), target_logprobs=logprobs)

    def _encode(self, prompt: JudgePrompt, rows: Sequence[Row], depth: int) -> tuple[list[Encoded], list[str | None]]:
        encoded = self.encoder.encode(prompt.render_all(rows))
        limit = (self.max_length or 1 << 30) - depth - 1
        long = "{} tokens, but this judge reads at most {}"
        reasons = [e.problem or (long.format(len(e.ids), limit) if len(e.ids) > limit else None) for e in encoded]
        return encoded, reasons

    def _read(self, trie: LabelTrie, texts: list[list[int]]) -> tuple[torch.Tensor, list[str | None]]:
        """(n, K) label log-probabilities of distinct texts, and why one has none."""
        if not texts:
            return torch.zeros(0, trie.n_labels), []
        steps = [
            self._next([[*text, *context] for text in texts], list(children))
            for context, children in zip(trie.contexts, trie.children, strict=True)
        ]
        logits = [
            torch.tensor([[found.logprobs.get(child, -math.inf) for child in children] for found in step])
            for children, step in zip(trie.children, steps, strict=True)
        ]
        logprobs = trie.log_probs(logits, [torch.zeros(len(texts))] * len(logits))
        mass = logprobs.exp().sum(-1)
        why: list[str | None] = []
        for i in range(len(texts)):
            bound = sum(
                _missing(trie.children[c], step[i]) * _reach(trie, c, [s[i] for s in steps])
                for c, step in enumerate(steps)
            )
            share = bound / max(float(mass[i]), 1e-300)
            why.append(
                None if share <= self.missing_tolerance else
                f"labels are missing from the most likely tokens; they may hold {share:.1e} of the label mass"
            )  # fmt: skip
        return logprobs, why

    def _next(self, sequences: list[list[int]], children: list[int]) -> list[Next]:
        call = ENGINES[self.engine]
        parts = [sequences[i : i + self.batch] for i in range(0, len(sequences), self.batch)]
        if len(parts) == 1:
            return call(self, sequences, children)
        with ThreadPoolExecutor(self.transport.concurrency) as pool:
            return [found for part in pool.map(lambda p: call(self, p, children), parts) for found in part]


def _missing(children: Sequence[int], found: Next) -> float:
    """Most probability that children left out can hold."""
    left_out = sum(child not in found.logprobs for child in children)
    return left_out * math.exp(found.floor) if left_out else 0.0


def _reach(trie: LabelTrie, context: int, steps: Sequence[Next]) -> float:
    """Most probability with which a context of the trie is reached."""
    path, total = trie.contexts[context], 0.0
    for i, token in enumerate(path):
        found = steps[trie.contexts.index(path[:i])]
        total += found.logprobs.get(token, min(found.floor, 0.0))
    return math.exp(total)
