"""Training examples: a prompt, a completion and its label, from pairs, lists, ratings or two generators."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latent_rewards.prompts import to_text
from latent_rewards.rowio import open_binary, parse_line


class Example(NamedTuple):
    """One completion with its label.

    Attributes:
        prompt: string or message list.
        completion: string or message list.
        label: 1 for good, 0 for bad, or a rating.
        pair: examples with the same pair number >= 0 belong together (chosen and rejected, or a list); -1 is alone.
        source: where it comes from, e.g. the name of a data file.
        columns: further slots of the judge prompt.
    """

    prompt: Any
    completion: Any
    label: float
    pair: int = -1
    source: str = ""
    columns: Mapping[str, Any] = {}


def pair_examples(pairs: Iterable[Mapping[str, Any]], source: str = "") -> list[Example]:
    """Two examples per row with `prompt`, `chosen` and `rejected`: chosen first."""
    out = []
    for i, row in enumerate(pairs):
        name = str(source or row.get("source", ""))
        out += [
            Example(row["prompt"], row["chosen"], 1.0, i, name),
            Example(row["prompt"], row["rejected"], 0.0, i, name),
        ]
    return out


def rating_examples(rows: Iterable[Mapping[str, Any]], source: str = "") -> list[Example]:
    """One example per row with `prompt`, `response` (or `completion`) and `score`."""
    return [
        Example(r["prompt"], r["response"] if "response" in r else r["completion"], float(r["score"]), -1, source)
        for r in rows
    ]


def list_examples(rows: Iterable[Mapping[str, Any]], source: str = "") -> list[Example]:
    """One example per response of rows with `prompt`, `responses` and `gold`; a list shares one pair number."""
    return [
        Example(r["prompt"], c, float(g), i, source)
        for i, r in enumerate(rows)
        for c, g in zip(r["responses"], r["gold"], strict=True)
    ]


def join_examples(*parts: Sequence[Example]) -> list[Example]:
    """Several lists of examples as one, with pair numbers made distinct."""
    out: list[Example] = []
    for part in parts:
        start = 1 + max((e.pair for e in out), default=-1)
        out += [e._replace(pair=e.pair + start if e.pair >= 0 else -1) for e in part]
    return out


def strong_weak_examples(prompts: Sequence[Any], strong: Any, weak: Any, source: str = "strong-weak") -> list[Example]:
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


def prompt_group(prompt: Any) -> int:
    """Number that is equal for equal prompts, whatever their case and white space."""
    text = " ".join(to_text(prompt).lower().split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def fingerprint(examples: Iterable[Example]) -> str:
    """Content hash of a data set."""
    digest = hashlib.sha256()
    for e in examples:
        digest.update(json.dumps([e.prompt, e.completion, e.label, e.pair, dict(e.columns)], default=str).encode())
    return digest.hexdigest()[:16]


def read_examples(path: str | Path, *, limit: int | None = None) -> list[Example]:
    """Examples of a JSON Lines file (.jsonl or .jsonl.gz), recognised by its keys.

    `chosen` and `rejected`: pairs. `responses` and `gold`: lists. `score` with `response` or `completion`: ratings.

    Args:
        path: the file.
        limit: most rows of it, the first ones.

    Raises:
        ValueError: none of these keys; names the file and its keys.
    """
    path = Path(path)
    rows = _rows(path, limit)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    made: list[Example] | None = None
    try:
        if rows and {"chosen", "rejected"} <= rows[0].keys():
            made = pair_examples(rows, name)
        elif rows and {"responses", "gold"} <= rows[0].keys():
            made = list_examples(rows, name)
        elif rows and "score" in rows[0] and {"response", "completion"} & rows[0].keys():
            made = rating_examples(rows, name)
        for i, example in enumerate(made or ()):
            if not math.isfinite(example.label):
                raise ValueError(f"example {i}: label {example.label}")
    except (ValueError, TypeError, KeyError, OverflowError) as err:
        what = f"a row lacks {err}" if isinstance(err, KeyError) else str(err)
        raise ValueError(f"{path}: {what}") from err
    if made is not None:
        return made
    raise ValueError(
        f"{path}: rows need prompt with chosen and rejected, responses and gold, or response and score; "
        f"found {sorted(rows[0]) if rows else 'no rows'}"
    )


def _rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file; one broken line stops it."""
    rows: list[dict[str, Any]] = []
    try:
        with open_binary(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    row, fault = parse_line(line, number)
                    if fault is not None:
                        raise ValueError(fault)
                    rows.append(row)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as err:
        raise ValueError(f"{path}: {err}") from err
    return rows


def gather(files: Sequence[str | Path], *, limit: int | None = None) -> list[Example]:
    """Examples of several files; see `read_examples`."""
    return join_examples(*(read_examples(f, limit=limit) for f in files))
