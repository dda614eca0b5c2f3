"""Training examples: a prompt, a completion and its label, from pairs, lists, ratings or two generators."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from latent_rewards.files.sources import RowError, numbered_rows
from latent_rewards.files.types import Prompt, Row, number
from latent_rewards.judge.layouts import ACCEPTED, BadRow, Judged, Kind, judged, kind_of
from latent_rewards.judge.prompts import to_text

logger = logging.getLogger(__name__)

Answers = Callable[[list[Prompt]], Sequence[Prompt]]

SHOWN = 5  # bad rows that are named


class Example(NamedTuple):
    """One completion with its label.

    Attributes:
        prompt: string or message list.
        completion: string or message list.
        label: 1 for good, 0 for bad, or a rating; one for each aspect where there are several.
        pair: examples with the same pair number >= 0 belong together (chosen and rejected, or a list); -1 is alone.
        source: where it comes from, e.g. the name of a data file.
        columns: further slots of the judge prompt.
    """

    prompt: Prompt
    completion: Prompt
    label: float | tuple[float, ...]
    pair: int = -1
    source: str = ""
    columns: Mapping[str, object] = {}


def pair_examples(pairs: Iterable[Row], source: str = "") -> list[Example]:
    """Two examples per row with `prompt`, `chosen` and `rejected`: chosen first.

    Raises:
        ValueError: a row that cannot be used; names it. The same for the other kinds.
    """
    return _every(pairs, "pair", source)


def rating_examples(rows: Iterable[Row], source: str = "") -> list[Example]:
    """One example per row with `prompt`, `response` (or `completion`) and `score`."""
    return _every(rows, "rating", source)


def list_examples(rows: Iterable[Row], source: str = "") -> list[Example]:
    """One example per response of rows with `prompt`, `responses` and `gold`; a list shares one pair number."""
    return _every(rows, "list", source)


def _every(rows: Iterable[Row], kind: Kind, source: str) -> list[Example]:
    out: list[Example] = []
    for i, row in enumerate(rows):
        try:
            out += _examples(judged(row, kind), i, str(source or row.get("source", "") if kind == "pair" else source))
        except (ValueError, TypeError, OverflowError) as err:
            raise RowError(i, err) from err
    return out


def _examples(row: Judged, number: int, source: str) -> list[Example]:
    pair = -1 if row.kind == "rating" else number
    return [Example(row.prompt, r, g, pair, source) for r, g in zip(row.responses, row.gold, strict=True)]


def join_examples(*parts: Sequence[Example]) -> list[Example]:
    """Several lists of examples as one, with pair numbers made distinct."""
    out: list[Example] = []
    for part in parts:
        start = 1 + max((e.pair for e in out), default=-1)
        out += [e._replace(pair=e.pair + start if e.pair >= 0 else -1) for e in part]
    return out


def strong_weak_examples(
    prompts: Sequence[Prompt], strong: Answers, weak: Answers, source: str = "strong-weak"
) -> list[Example]:
    """Labels without annotators: completions of a strong generator count as 1, those of a weak one as 0.

    Args:
        prompts: prompts to answer.
        strong: list of prompts -> list of completions, e.g. a wrapped `pipeline`.
        weak: likewise.
        source: see `Example`.

    Source: Girrbach et al. 2025, appendix B.
    """
    rows = zip(prompts, strong(list(prompts)), weak(list(prompts)), strict=True)
    return pair_examples([{"prompt": p, "chosen": s, "rejected": w} for p, s, w in rows if s != w], source)


def prompt_group(prompt: Prompt) -> int:
    """Number that is equal for equal prompts, whatever their case and white space."""
    text = " ".join(to_text(prompt).lower().split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def fingerprint(examples: Iterable[Example]) -> str:
    """Content hash of a data set."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(json.dumps([e.prompt, e.completion, e.label, e.pair, dict(e.columns)], default=str).encode())
    return digest.hexdigest()[:16]


def _aspect_example(row: Row, aspects: Sequence[str], source: str) -> list[Example]:
    """A response with a rating for each aspect."""
    missing = [a for a in aspects if not isinstance(row, Mapping) or row.get(a) is None]
    if missing:
        raise ValueError(f"missing field {', '.join(missing)}")
    found = judged({**row, "score": 0.0}, "rating")
    return [Example(found.prompt, found.responses[0], tuple(number(row[a], a) for a in aspects), -1, source)]


def read_examples(
    path: str | Path, *, limit: int | None = None, bad: list[BadRow] | None = None, aspects: Sequence[str] = ()
) -> list[Example]:
    """Examples of a JSON Lines (.jsonl or .jsonl.gz) or Parquet file, recognised by the keys of its first sound row.

    `chosen` and `rejected`: pairs. `responses` and `gold`: lists. `score` with `response` or `completion`: ratings.
    Completions may hold the prompt; see `latent_rewards.judge.layouts`. Unusable rows are left out, with a warning.

    Args:
        path: the file.
        limit: most rows of it, the first ones.
        bad: gets the rows that were left out.
        aspects: columns of ratings; rows then hold a prompt and one response.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, none of these keys, or no usable row; names the file and its keys, or the first bad rows.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet")
    out: list[Example] = []
    left: list[BadRow] = []
    kind, keys, used = None, None, 0
    for file, line, row in itertools.islice(numbered_rows(path), limit):
        try:
            if isinstance(row, Exception):
                raise row
            kind = kind or ("rating" if aspects else kind_of(row))
            keys = keys or sorted(row)
            plain = [] if aspects else _examples(judged(row, kind or "pair"), used, name)
            out += plain or _aspect_example(row, aspects, name)
            used += 1
        except (ValueError, TypeError, OverflowError, RecursionError) as err:
            left.append(BadRow(file, line, str(err)))
    if kind is None and (keys or not left):
        raise ValueError(f"{path}: {f'columns {keys} are no layout that is known' if keys else 'no rows'}; {ACCEPTED}")
    if not out:
        raise ValueError(f"{path}: no usable row ({_named(left)})")
    if left:
        logger.warning("%s: left out %s", path, _named(left))
    if bad is not None:
        bad += left
    return out


def _named(bad: Sequence[BadRow]) -> str:
    first = "; ".join(f"row {b.row}: {b.reason}" for b in bad[:SHOWN])
    return f"{len(bad)} bad {'row' if len(bad) == 1 else 'rows'}: {first}{'; ...' if len(bad) > SHOWN else ''}"


def sources(files: Sequence[str | Path], bad: Sequence[BadRow]) -> list[str]:
    """A line for each data file, for a model card: its path, and which of its rows were left out."""
    out = []
    for file in map(str, files):
        own = [b for b in bad if b.file == file]
        out.append(f"{file} (left out {_named(own)})" if own else file)
    return out


def gather(
    files: Sequence[str | Path],
    *,
    limit: int | None = None,
    bad: list[BadRow] | None = None,
    aspects: Sequence[str] = (),
) -> list[Example]:
    """Examples of several files; see `read_examples`."""
    return join_examples(*(read_examples(f, limit=limit, bad=bad, aspects=aspects) for f in files))
