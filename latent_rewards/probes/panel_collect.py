"""The readings that a panel is fitted on: every example read once under every question, kept; a stopped run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_rewards.files import artefact
from latent_rewards.judge.fingerprint import digest, facts_of, layout_of
from latent_rewards.judge.reading import Judge, Lens, Need, Reading
from latent_rewards.probes.examples import Example, fingerprint
from latent_rewards.probes.questions import Question, judged_length, requests_of

logger = logging.getLogger(__name__)


def collect_readings(
    judge: Judge,
    questions: Sequence[Question],
    examples: Sequence[Example],
    *,
    folder: str | Path | None = None,
    lenses: Iterable[Lens] = (),
    also: Need | None = None,
    shard_rows: int = 64,
) -> list[Reading]:
    """Read every example under every question, in one forward a batch.

    Args:
        judge: the judge.
        questions: what is asked.
        examples: N examples.
        folder: where the readings are kept, in shards; a second run goes on there. None keeps nothing.
        lenses: of label logits of every layer.
        also: what else is wanted of the first question, such as states to fit a probe on beside the panel.
        shard_rows: rows read at once and kept in one shard.

    Returns:
        One reading for each question, N rows each.

    Raises:
        ValueError: the folder holds readings of something else, or damaged ones.
    """
    wanted = frozenset(lenses)
    key = digest({
        "judge": facts_of(judge), "layouts": [layout_of(judge, q.prompt) for q in questions],
        "questions": [[q.prompt.hash, q.criterion] for q in questions], "lenses": sorted(wanted),
        "also": [] if also is None else [sorted(also.hidden), also.hidden_lens],
    })  # fmt: skip
    parts: list[list[Reading]] = [[] for _ in questions]
    starts = range(0, len(examples), shard_rows)
    for number, start in enumerate(starts):
        some = examples[start : start + shard_rows]
        shard = None if folder is None else Path(folder) / f"shard-{number:05d}"
        about = {"key": key, "examples": fingerprint(some)}
        if shard is not None and (shard / "readings.json").is_file():
            found = _kept(shard, about, len(questions))
        else:
            outages = judge.outages
            found = _read(judge, questions, some, wanted, also)
            if shard is not None and judge.outages == outages:  # else it is read again another time
                _keep(shard, about, found)
            logger.info("readings: %d of %d rows", start + len(some), len(examples))
        for part, reading in zip(parts, found, strict=True):
            part.append(reading)
    return [Reading.join(part) for part in parts]


def lengths_of(questions: Sequence[Question], examples: Sequence[Example]) -> np.ndarray:
    """(N,) characters of the completions, as judged."""
    return np.array([judged_length(questions[0].prompt, {"completion": e.completion}) for e in examples])


def _read(
    judge: Judge, questions: Sequence[Question], examples: Sequence[Example], lenses: frozenset[Lens], also: Need | None
) -> list[Reading]:
    requests = requests_of(questions, [_row(e) for e in examples], lenses)
    if also is not None:
        requests[0] = requests[0]._replace(need=requests[0].need | also)
    return judge.read(requests)


def _row(example: Example) -> Mapping[str, object]:
    return {**example.columns, "prompt": example.prompt, "completion": example.completion}


def _keep(shard: Path, about: Mapping[str, object], readings: Sequence[Reading]) -> None:
    tensors: dict[str, Tensor] = {}
    for i, reading in enumerate(readings):
        assert reading.label_logprobs is not None and reading.label_mass is not None
        tensors |= {f"{i}/logprobs": reading.label_logprobs, f"{i}/mass": reading.label_mass}
        tensors |= {f"{i}/layers/{lens}": x for lens, x in reading.layer_label_logits.items()}
        tensors |= {f"{i}/hidden/{layer}": x.to(torch.float16) for layer, x in reading.hidden.items()}
    reasons = [list(reading.reasons) for reading in readings]
    artefact.save(shard, "readings", {**about, "reasons": reasons}, tensors)


def _kept(shard: Path, about: Mapping[str, object], count: int) -> list[Reading]:
    with artefact.opened(shard, "readings", "a shard of readings") as (found, tensors):
        other = sorted(k for k in about if found[k] != about[k])
        if other:
            raise ValueError(f"it was read with other {' and '.join(other)}; give another folder, or collect anew")
        out = []
        for i in range(count):
            mine = {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{i}/")}
            out.append(Reading(
                mine["logprobs"], mine["mass"],
                {int(k.removeprefix("hidden/")): v.float() for k, v in mine.items() if k.startswith("hidden/")},
                {k.removeprefix("layers/"): v for k, v in mine.items() if k.startswith("layers/")},
                tuple(found["reasons"][i]),
            ))  # fmt: skip
        return out
