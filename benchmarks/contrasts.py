"""Cheap contrasts: label logits of the last layer less those of an early one, or less a smaller judge's.

    python -m benchmarks.contrasts --readings runs/panel --small runs/small --out benchmarks/results/contrasts-1.5b

from the files that `panel_sample` keeps for a judge and for a smaller one (arXiv 2510.18196), without either:

    z = z_last - w z_early,  or  z = z_judge - w z_small;  p = softmax(z),  S = sum_k v_k p_k

One weight (and layer) is chosen by accuracy on 50, 150 and 500 labelled rows of other sets, none (w = 0) among the
choices, and measured on the set that was left out.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import readings_file
from benchmarks.panel_rows import LEFT_OUT, SIZES, Rows, estimates, lead, load_rows, splits
from benchmarks.readings_file import cell
from latent_rewards import JudgePrompt, readouts
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import command, commit

QUESTIONS = ("weighted", "verifier")
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LAYER, SMALL = "early layer", "smaller judge"


def score(logits: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """(N,) score of (N, K) label logits: expected rating, of yes and no the log-odds."""
    of = readouts.log_odds if set(values) == {0.0, 1.0} else readouts.expected_rating
    return of(torch.tensor(logits), values).double().numpy()


def candidates(
    last: np.ndarray, others: dict[int | None, np.ndarray], values: Sequence[float], weights: Sequence[float] = WEIGHTS
) -> dict[tuple[int | None, float], np.ndarray]:
    """(layer, weight) -> (N,) scores of z_last - weight z_other; weight 0 once, first.

    Args:
        last: (N, K) label logits, nats.
        others: what is taken away, (N, K) by layer, None for a judge of its own.
        values: (K,) of the labels.
        weights: to try.
    """
    out = {(None, 0.0): score(last, values)} if 0.0 in weights else {}
    for layer, other in others.items():
        out |= {(layer, w): score(last - w * other, values) for w in weights if w}
    return out


def chosen(won: np.ndarray) -> int:
    """Index of the row of (C, P) won pairs that wins most; of several the first, which contrasts least."""
    return int(np.nanmean(won, axis=1).argmax())


def measured(
    rows: Rows, tried: dict[tuple[int | None, float], np.ndarray], size: int | None, draws: int, seed: int = 42
) -> dict[str, Any]:
    """The contrast chosen on `size` rows of other sets, measured on the set left out, beside none."""
    names = list(tried)
    won = np.stack([rows.won(s) for s in tried.values()])
    found = np.full(won.shape[1], np.nan)
    picked: Counter[str] = Counter()
    for number, (train, test) in enumerate(splits(rows, LEFT_OUT)):
        made = []
        for draw in range(draws if size is not None else 1):
            rng = np.random.default_rng([seed, number, draw])
            some = train if size is None else rng.permutation(train)[: size // 2]
            best = chosen(won[:, some])
            picked[_name(*names[best])] += 1
            made.append(won[best][test])
        found[test] = np.mean(made, axis=0)
    plain = won[0]
    return {
        "n": int(np.isfinite(found).sum()), "accuracy": estimates(rows, found)[:3],
        "without": estimates(rows, plain)[:3], "lead": lead(rows, found, plain),
        "lead, matched": lead(rows, found, plain, rows.matched), "chosen": dict(picked.most_common(4)),
    }  # fmt: skip


def ceiling(rows: Rows, tried: dict[tuple[int | None, float], np.ndarray]) -> dict[str, Any]:
    """The one choice that is best on all pairs that are measured: more than any choice made beforehand can give."""
    won = np.stack([rows.won(s) for s in tried.values()])
    best = chosen(won)
    return {
        "n": won.shape[1], "accuracy": estimates(rows, won[best])[:3], "without": estimates(rows, won[0])[:3],
        "lead": lead(rows, won[best], won[0]), "lead, matched": lead(rows, won[best], won[0], rows.matched),
        "chosen": {_name(*list(tried)[best]): 1},
    }  # fmt: skip


def _name(layer: int | None, weight: float) -> str:
    return f"{weight:g}" if layer is None else f"layer {layer}, {weight:g}"


def taken_away(rows: Rows, small: Rows | None, question: str) -> dict[str, dict[int | None, np.ndarray]]:
    """What the files give of each kind: all layers but the last, and the smaller judge on the same rows."""
    out: dict[str, dict[int | None, np.ndarray]] = {}
    if f"{question}/layers" in rows.arrays:
        layers = rows.arrays[f"{question}/layers"].astype(np.float32)
        out[LAYER] = {k: layers[:, k] for k in range(layers.shape[1] - 1)}
    if small is not None:
        out[SMALL] = {None: small.arrays[f"{question}/logprobs"]}
    return out


def same_rows(rows: Rows, small: Rows) -> tuple[Rows, Rows]:
    """Those pairs of both that both judges read.

    Raises:
        ValueError: the files hold other texts under the same numbers.
    """
    both = np.intersect1d(rows.table.pair, small.table.pair)
    out = tuple(taken(r, np.isin(r.table.pair, both)) for r in (rows, small))
    same = all((getattr(out[0].table, k) == getattr(out[1].table, k)).all() for k in ("group", "length", "label"))
    if not same:
        raise ValueError("the two judges were given different samples; read both with the same --chars and --each")
    return out[0], out[1]


def taken(rows: Rows, keep: np.ndarray) -> Rows:
    """Some completions, by mask."""
    arrays = {name: x[keep] for name, x in rows.arrays.items()}
    return Rows(rows.about, arrays, rows.table.take(keep), {name: s[keep] for name, s in rows.members.items()})


def results(rows: Rows, small: Rows | None, draws: int) -> list[dict[str, Any]]:
    """A row for each question, kind of contrast and number of labelled rows."""
    out = []
    for question in QUESTIONS:
        labels = JudgePrompt.load(question).labels
        assert labels is not None
        last = rows.arrays[f"{question}/logprobs"]
        for kind, others in taken_away(rows, small, question).items():
            tried = candidates(last, others, labels.values)
            head = {"question": question, "less": kind}
            for size in (*SIZES, None):
                found = measured(rows, tried, size, draws)
                out.append({**head, "fitted on": "all" if size is None else size, **found})
            out.append({**head, "fitted on": "the pairs measured", **ceiling(rows, tried)})
    return out


def page(result: dict[str, Any]) -> str:
    """The table."""
    keys = ("question", "less", "fitted on", "n", "without", "accuracy", "lead", "lead, matched", "chosen")
    cells = [[_chosen(r[k]) if k == "chosen" else cell(r[k]) for k in keys] for r in result["rows"]]
    said = (
        f"`{result['command']}`; commit {result['commit']}, {result['judge']}, {result['device']}; smaller judge: "
        f"{result['small']}. {result['pairs']} pairs of at most {result['chars']} characters of {len(result['sets'])} "
        f"sets. Layer and weight are chosen on labelled rows of the other sets ({result['draws']} draws), 'the pairs "
        "measured' is the best one choice in hindsight. 95 % intervals are bootstrap intervals over prompts, leads "
        "paired."
    )
    head = "# Contrasts with an early layer and with a smaller judge"
    return "\n".join([head, "", said, "", *table(list(keys), cells), ""])


def _chosen(found: dict[str, int]) -> str:
    return "; ".join(f"{name} ({count})" for name, count in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=Path, default=Path("runs/panel"))
    parser.add_argument("--small", type=Path, help="folder of the smaller judge's readings")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/contrasts"), help="without ending")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--name", help="name of the judge, where it was loaded from a folder")
    args = parser.parse_args()
    rows, small = load_rows(args.readings), None if args.small is None else load_rows(args.small)
    if small is not None:
        rows, small = same_rows(rows, small)
    result = rows.about | {
        "command": command("benchmarks.contrasts"), "commit": commit(), "judge": args.name or rows.about["judge"],
        "small": None if small is None else small.about["judge"], "pairs": len(rows.group), "draws": args.draws,
        "sets": sorted(set(rows.source.tolist())), "rows": results(rows, small, args.draws),
    }  # fmt: skip
    readings_file.write(args.out, result, page(result))


if __name__ == "__main__":
    main()
