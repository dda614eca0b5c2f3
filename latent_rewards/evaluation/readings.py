"""One forward per text and prompt for all scorers: fills the cache in fixed batches and gives readings back from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from latent_rewards.files.cache import Cache, Part, content_key
from latent_rewards.judge.fingerprint import judge_key, layout_of
from latent_rewards.judge.hf import HFJudge, Judge, Need, Reading, Request, Row
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.likert import LikertReward

Rows = Sequence[Mapping[str, object]]
T = TypeVar("T")


class Readings:
    """A judge behind a cache.

    Args:
        judge: a frozen judge.
        cache: where readings are kept.
        batch: texts in one batch. Batches are cut from the whole list of texts, so a killed and resumed run reads
            the same batches as an undisturbed one, and gets bit-identical numbers.
        rank: this process; it reads every `world`-th batch, counted over all that is asked for, since one slice of a
            run may have fewer batches than there are processes.
        world: number of processes.
    """

    def __init__(self, judge: Judge, cache: Cache, *, batch: int = 32, rank: int = 0, world: int = 1) -> None:
        self.judge, self.cache, self.batch, self.rank, self.world = judge, cache, batch, rank, world
        self.judge_key = judge_key(judge)
        self._layouts: dict[str, str] = {}
        self._turn = 0

    def fill(self, work: Sequence[tuple[JudgePrompt, Need]], rows: Rows) -> Iterator[int]:
        """Read what is missing, all prompts of a batch in one forward; yields the number of texts after each batch."""
        for some in self._batches(rows):
            self.ensure([Request(prompt, some, need) for prompt, need in work])
            yield len(some)

    def ensure(self, requests: Sequence[Request]) -> None:
        """Read what is missing of these requests, all in one forward."""
        wanted, keys = [], []
        for prompt, rows, need in requests:
            missing = dict(self._missing(prompt, rows, _parts(need)))
            if missing:
                wanted.append(Request(prompt, list(missing.values()), need))
                keys.append(list(missing))
        if not wanted:
            return
        outages, started = self.judge.outages, time.perf_counter()
        found = zip(keys, self.judge.read(wanted), wanted, strict=True)
        if self.judge.outages != outages:
            return  # what nobody answered is asked again another time
        self.cache.put(
            [part for own, reading, r in found for part in _split(own, reading, r.need)],
            stage="read " + "+".join(dict.fromkeys(r.prompt.name for r in requests)),
            texts=max(len(r.rows) for r in wanted),
            tokens=sum(self._tokens(r.prompt, r.rows) for r in wanted),
            seconds=time.perf_counter() - started,
        )

    def fill_answers(self, reward: LikertReward, rows: Rows, *, greedy: bool = False) -> Iterator[int]:
        """Sample what is missing; yields the number of texts after each batch."""
        part = _answers_part(reward, greedy)
        n, temperature = (1, 0.0) if greedy else (reward.n_samples, reward.temperature)
        for some in self._batches(rows):
            missing = self._missing(reward.prompt, some, [part])
            if missing:
                todo = [row for _, row in missing]
                outages, started = reward.judge.outages, time.perf_counter()
                answers = reward.judge.generate(
                    reward.prompt, todo, n=n, temperature=temperature, max_new_tokens=reward.max_new_tokens,
                    seed=reward.seed,
                )  # fmt: skip
                if reward.judge.outages == outages:
                    self.cache.put(
                        [(key, part, list(a)) for (key, _), a in zip(missing, answers, strict=True)],
                        stage=f"{'greedy' if greedy else 'sample'} {reward.prompt.name}", texts=len(todo),
                        tokens=self._tokens(reward.prompt, todo), seconds=time.perf_counter() - started,
                    )  # fmt: skip
            yield len(some)

    def _missing(self, prompt: JudgePrompt, rows: Rows, parts: Sequence[str]) -> list[tuple[bytes, Row]]:
        """Keys and rows of which some part is not in the cache."""
        keys = self._keys(prompt, rows)
        there = self.cache.has(keys, parts)
        return [(key, row) for key, row, known in zip(keys, rows, there, strict=True) if not known]

    def fetch(self, prompt: JudgePrompt, rows: Rows, need: Need) -> Reading:
        """A reading of all rows from the cache; NaN for rows that were not read."""
        keys = self._keys(prompt, rows)
        got = {part: self._stack(keys, part, prompt) for part in _parts(need) if part != "reason"}
        reasons = tuple("not read" if r is None else r[0] for r in self.cache.get(keys, "reason"))
        labels = got.get("labels")
        return Reading(
            None if labels is None else labels[:, :-1],
            None if labels is None else labels[:, -1],
            {layer: got[f"hidden:{need.hidden_lens}:{layer}"] for layer in need.hidden},
            {lens: got[f"layers:{lens}"] for lens in need.layer_logits},
            reasons,
            got.get("target"),
        )

    def kept(self, prompt: JudgePrompt, rows: Rows, need: Need) -> np.ndarray:
        """(B,) whether all that is needed of a row is in the cache."""
        return self.cache.has(self._keys(prompt, rows), _parts(need))

    def fetch_answers(self, reward: LikertReward, rows: Rows, *, greedy: bool = False) -> list[list[str | None] | None]:
        """Sampled answers of each row; None for a row that was not asked."""
        return self.cache.get(self._keys(reward.prompt, rows), _answers_part(reward, greedy))

    def remember(self, reward: Reward, rows: Rows, part: str, compute: Callable[[], T]) -> T:
        """A plain value that belongs to these rows together, computed once."""
        texts = json.dumps([k.hex() for k in self._keys(reward.prompt, rows)])
        key = content_key(reward.fingerprint, "", {"rows": texts})
        known = self.cache.get([key], part)[0]
        if known is None:
            outages, started = reward.judge.outages, time.perf_counter()
            known = [compute()]
            seconds = time.perf_counter() - started
            if reward.judge.outages == outages:
                self.cache.put([(key, part, known)], stage="stability", texts=len(rows), tokens=0, seconds=seconds)
        return known[0]

    def _stack(self, keys: Sequence[bytes], part: str, prompt: JudgePrompt) -> torch.Tensor:
        values = self.cache.get(keys, part)
        shape = next((v.shape for v in values if v is not None), None) or self._shape(part, prompt)
        if part == "target":  # as many tokens as each text has
            rows = [torch.full((1,), torch.nan) if v is None else torch.from_numpy(np.array(v)) for v in values]
            return pad_sequence(rows, batch_first=True, padding_value=torch.nan)
        return torch.from_numpy(np.stack([np.full(shape, np.nan, np.float32) if v is None else v for v in values]))

    def _shape(self, part: str, prompt: JudgePrompt) -> tuple[int, ...]:
        """Of a part of which nothing is there."""
        labels = len(prompt.labels or ())
        if isinstance(self.judge, HFJudge) and part.startswith("layers:"):
            return (self.judge.n_layers + 1, labels)
        if isinstance(self.judge, HFJudge) and part.startswith("hidden:"):
            return (self.judge.blocks.config.hidden_size,)
        return (labels + 1,) if part == "labels" else (1,)

    def _keys(self, prompt: JudgePrompt, rows: Rows) -> list[bytes]:
        if prompt.hash not in self._layouts:
            self._layouts[prompt.hash] = f"{prompt.hash} {layout_of(self.judge, prompt)}"
        return [content_key(self.judge_key, self._layouts[prompt.hash], row) for row in rows]

    def _batches(self, rows: Rows) -> Iterator[list[Mapping[str, object]]]:
        texts = list({content_key("", "", row): row for row in rows}.values())
        for start in range(0, len(texts), self.batch):
            mine, self._turn = self._turn % self.world == self.rank, self._turn + 1
            if mine:
                yield texts[start : start + self.batch]

    def _tokens(self, prompt: JudgePrompt, rows: Rows) -> int:
        encoder = self.judge.encoder
        return sum(len(e.ids) for e in encoder.encode([prompt.render(r) for r in rows])) if encoder is not None else 0


def _parts(need: Need) -> list[str]:
    hidden = [f"hidden:{need.hidden_lens}:{layer}" for layer in sorted(need.hidden)]
    layers = [f"layers:{lens}" for lens in sorted(need.layer_logits)]
    return ["reason", *(["labels"] if need.labels else []), *(["target"] if need.target else []), *hidden, *layers]


def _split(keys: Sequence[bytes], reading: Reading, need: Need) -> list[Part]:
    out: list[Part] = [(k, "reason", [r]) for k, r in zip(keys, reading.reasons, strict=True)]
    if need.labels:
        assert reading.label_logprobs is not None and reading.label_mass is not None
        both = torch.cat([reading.label_logprobs, reading.label_mass[:, None]], 1).numpy()
        out += [(k, "labels", row) for k, row in zip(keys, both, strict=True)]
    if need.target:
        assert reading.target_logprobs is not None
        own = [row[~np.isnan(row)] for row in reading.target_logprobs.numpy()]
        out += [(k, "target", row) for k, row in zip(keys, own, strict=True)]
    for layer in need.hidden:
        part = f"hidden:{need.hidden_lens}:{layer}"
        out += [(k, part, row) for k, row in zip(keys, reading.hidden[layer].numpy(), strict=True)]
    for lens in need.layer_logits:
        out += [
            (k, f"layers:{lens}", row) for k, row in zip(keys, reading.layer_label_logits[lens].numpy(), strict=True)
        ]
    return out


def _answers_part(reward: LikertReward, greedy: bool) -> str:
    if greedy:
        return f"answers:greedy:{reward.max_new_tokens}"
    return f"answers:{reward.n_samples}:{reward.temperature}:{reward.max_new_tokens}:{reward.seed}"
