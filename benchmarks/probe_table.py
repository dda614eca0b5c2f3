"""Probes on public benchmarks: leave one benchmark out and in distribution, against prompted scores and length.

    LATENT_REWARDS_DATA=../shared/data python -m benchmarks.probe_table --sweep

Collects what is missing of the features (`benchmarks.probe_sample`), trains the probes, writes
`benchmarks/results/probes-<judge>.{json,md}` and prints the tables. `--sweep` also draws accuracy by layer; `--ship`
(with `--recipe shipped`) trains the probe that comes with the package, on files under MIT or Apache-2.0 only.

Sources, layer, strength and guards were chosen on dev prompts (`benchmarks.probe_sample.is_dev`); the columns that say
"unseen" are of the other prompts, which no choice looked at.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.probe_fits import (
    DEFAULT,
    IN_DISTRIBUTION,
    INSIDE,
    LENGTH,
    PROBE,
    PROMPTED,
    RECIPES,
    Bench,
    Recipe,
    enough,
    in_distribution,
    left_out,
    rows_of,
    won,
)
from benchmarks.probe_sample import EXTRA, FILES, arguments, collect
from benchmarks.probe_ship import ship
from latent_rewards import JudgePrompt, readouts
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.probes.card import table
from latent_rewards.probes.cross_validation import cross_validate
from latent_rewards.stats.bootstrap import mean_estimate, mean_of
from latent_rewards.stats.pairs import wins


def mean_of_files(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Mean over files with its interval, from (values, groups) of each."""
    return mean_of([mean_estimate(*part) for part in parts])[:3]


def list_rho(bench: Bench, score: np.ndarray) -> dict[str, object]:
    """Mean Spearman within lists with its interval, of all and of unseen prompts; a list of equal scores counts 0."""
    label, pair, group = (bench.column(c) for c in ("label", "pair", "group"))
    found = []
    for number in np.unique(pair):
        rows = pair == number
        if np.ptp(label[rows]) > 0:
            rho = spearmanr(score[rows], label[rows]).statistic if np.ptp(score[rows]) > 0 else 0.0
            found.append((rho, group[rows][0], ~bench.sample.dev[bench.read][rows][0]))
    rhos, groups, unseen = (np.array(c) for c in zip(*found, strict=True))
    out: dict[str, object] = {}
    for tag, part in (("unseen ", unseen.astype(bool)), ("", np.ones(len(rhos), bool))):
        out |= {f"{tag}lists": int(part.sum()), f"{tag}rho": mean_estimate(rhos[part], groups[part])[:3]}
    return out


def report(bench: Bench, scorer: str, score: np.ndarray, only: np.ndarray | None = None, name: str = "") -> dict:
    """One line of the table; `only` picks a part of the pairs."""
    right = wins(score, bench.better, bench.worse)
    part = np.ones(len(right), bool) if only is None else only
    row = {"file": name or bench.name, "scorer": scorer}
    for tag, rows in (("unseen ", part & bench.unseen), ("", part)):
        flat, matched = rows & bench.random, rows & bench.matched
        sides = [right[rows & (bench.longer == s)] for s in (1, -1)]
        row |= {
            f"{tag}n": int(flat.sum()), f"{tag}accuracy": mean_estimate(right[flat], bench.group[flat])[:3],
            f"{tag}n matched": int(matched.sum()),
            f"{tag}matched": mean_estimate(right[matched], bench.group[matched])[:3],
            f"{tag}balanced": float(np.mean([s.mean() for s in sides])) if all(map(len, sides)) else float("nan"),
        }  # fmt: skip
    if bench.name.startswith("listwise"):
        row |= list_rho(bench, score)
    return row


def lines(benches: dict[str, Bench], name: str, prompt: JudgePrompt, recipe: Recipe) -> tuple[dict, list[dict]]:
    """Scores of all scorers on one file, and their lines; LLMBar's adversarial part also apart."""
    bench = benches[name]
    assert prompt.labels is not None
    logprobs = torch.tensor(bench.column("label_logprobs"))
    scores = {
        LENGTH: bench.column("length").astype(float),
        PROMPTED: readouts.expected_rating(logprobs, prompt.labels.values).numpy(),
        PROBE: left_out(benches, name, recipe),
    }
    inside = in_distribution(benches, name, recipe)
    if np.isfinite(inside).all():
        scores[INSIDE] = inside
    out = [report(bench, k, s) for k, s in scores.items()]
    if name == "pairwise/llmbar":
        hard = bench.adversarial
        out += [report(bench, k, s, hard, f"{name}, adversarial") for k, s in scores.items()]
    return scores, out


def summary(benches: dict[str, Bench], scores: dict[str, dict[str, np.ndarray]]) -> list[dict]:
    """Means over the pairwise files of at least `FEWEST` such pairs, every file weighing the same."""
    pairwise = [n for n in scores if n.startswith("pairwise")]
    out = []
    for scorer, names in (
        (LENGTH, pairwise), (PROMPTED, pairwise), (PROBE, pairwise),
        (LENGTH, IN_DISTRIBUTION), (PROMPTED, IN_DISTRIBUTION), (PROBE, IN_DISTRIBUTION), (INSIDE, IN_DISTRIBUTION),
    ):  # fmt: skip
        mine = [(benches[n], scores[n][scorer]) for n in names if scorer in scores.get(n, {})]
        if not mine:
            continue
        row: dict = {"scorer": scorer, "files": "all pairwise" if names is pairwise else "AlpacaEval, RMB, Auto-J"}
        for tag in ("unseen ", ""):
            parts = enough([won(b, s, b.matched & (b.unseen if tag else True)) for b, s in mine])
            row[f"{tag}n matched"] = sum(len(p[0]) for p in parts)
            row[f"{tag}mean matched"] = mean_of_files(parts)
        row["unseen mean accuracy"] = mean_of_files(enough([won(b, s, b.random & b.unseen) for b, s in mine]))
        if names is pairwise and "pairwise/llmbar" in benches:
            bench = benches["pairwise/llmbar"]
            for tag in ("unseen ", ""):
                part = won(bench, scores[bench.name][scorer], bench.adversarial & (bench.unseen if tag else True))
                row[f"{tag}LLMBar adversarial"] = mean_estimate(*part)[:3]
        out.append(row)
    return out


def curve(benches: dict[str, Bench], recipe: Recipe, sizes: tuple[int, ...] = (25, 50, 100, 200, 400)) -> list[dict]:
    """In distribution, by the number of training prompts: how much data a probe wants."""
    out = []
    for name in (n for n in IN_DISTRIBUTION if n in benches):
        bench = benches[name]
        have = len(np.unique(bench.group)) * 4 // 5
        for prompts in (*(s for s in sizes if s < have), have):
            score = in_distribution(benches, name, recipe, prompts)
            row = {"file": name, "training prompts": prompts, "unseen n": int(bench.unseen[bench.random].sum())}
            row["unseen accuracy"] = mean_estimate(*won(bench, score, bench.random & bench.unseen))[:3]
            row["unseen matched"] = mean_estimate(*won(bench, score, bench.matched & bench.unseen))[:3]
            out.append(row)
    return out


def choose(
    benches: dict[str, Bench], recipe: Recipe, layers: list[tuple[int, ...]], strengths: list[float]
) -> list[dict]:
    """Dev figures of probes of every layer, strength and guard.

    Where the benchmark is left out they are trained and measured on dev prompts alone; in distribution they are trained
    on all prompts outside the fold and measured on dev prompts.
    """
    rows = []
    for side_by_side in layers:
        for strength in strengths:
            for guards in (("erase", "balance"), ("balance",)):
                fit = dataclasses.replace(recipe.fit, strength=strength, guards=guards)
                tried = Recipe(side_by_side, recipe.sources, fit, fit)
                scores = {n: left_out(benches, n, tried, dev_only=True) for n in benches if n.startswith("pairwise")}
                dev = enough([won(benches[n], s, benches[n].matched & ~benches[n].unseen) for n, s in scores.items()])
                row = {"layers": side_by_side, "strength": strength, "guards": "+".join(guards)}
                row |= {
                    "dev mean matched": mean_of_files(dev),
                    "n": sum(len(v) for v, _ in dev),
                }
                if hard := benches.get("pairwise/llmbar"):
                    part = won(hard, scores[hard.name], hard.adversarial & ~hard.unseen)
                    row["dev LLMBar adversarial"] = mean_estimate(*part)[:3]
                inside = [benches[n] for n in IN_DISTRIBUTION if n in benches]
                row["dev in distribution"] = mean_of_files(
                    [won(b, in_distribution(benches, b.name, tried), b.matched & ~b.unseen) for b in inside]
                )
                print(row, flush=True)
                rows.append(row)
    return rows


def sweep(benches: dict[str, Bench], layers: list[int], recipe: Recipe, out: Path) -> None:
    """Accuracy by layer, cross-validated by prompt on the sources, drawn as the recipe draws it."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from recipes.train_probe import draw

    rows = []
    for layer in layers:
        data = rows_of([benches[s] for s in recipe.sources if s in benches], (layer,))
        rows += [{"layer": layer, **r} for r in cross_validate(data, recipe.fit, strengths=[recipe.fit.strength])]
    made = provenance("benchmarks.probe_table")
    out.with_name(f"{out.name}-layers.json").write_text(to_json(made | {"rows": rows}, indent=1))
    draw(rows, out.with_name(f"{out.name}-layers.png"), out.name.removeprefix("probes-"))


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(files=[*FILES, *EXTRA])
    parser.add_argument(
        "--layer", type=int, nargs="+", help="layers the probe reads, side by side; default the recipe's"
    )
    parser.add_argument(
        "--choose",
        type=float,
        nargs="+",
        help="only print dev figures for these strengths: of `--layer`, or every layer",
    )
    parser.add_argument("--recipe", help=f"one of {list(RECIPES)}; default the judge's")
    parser.add_argument("--ship", help="folder for the shipped probe")
    parser.add_argument("--sweep", action="store_true", help="also accuracy by layer, with a plot")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    prompt = JudgePrompt.load("weighted")
    benches = {name: Bench(name, *rest) for name, *rest in collect(args, prompt)}
    info = next(iter(benches.values())).features.info
    recipe = RECIPES.get(args.recipe or info.judge, DEFAULT)
    recipe = dataclasses.replace(recipe, layers=tuple(args.layer or recipe.layers))
    if args.choose:
        print(
            table(choose(benches, recipe, [recipe.layers] if args.layer else [(k,) for k in args.layers], args.choose))
        )
        return
    scores, rows = {}, []
    for name in args.files:
        if name in FILES:
            scores[name], more = lines(benches, name, prompt, recipe)
            rows += more
    found = {
        **provenance("benchmarks.probe_table"), "judge": info.judge,
        "revision": info.revision, "prompt_hash": prompt.hash, "recipe": dataclasses.asdict(recipe), "rows": rows,
        "summary": summary(benches, scores), "curve": curve(benches, recipe),
    }  # fmt: skip
    out = args.out / f"probes-{info.judge}{f'-{args.recipe}' if args.recipe else ''}"
    out.with_name(f"{out.name}.json").write_text(to_json(found, indent=1))
    out.with_name(f"{out.name}.md").write_text(text := page(found))
    print(text)
    if args.sweep:
        sweep(benches, args.layers, recipe, out)
    if args.ship:
        ship(benches, prompt, recipe, found, args.ship)


def by_file(rows: list[dict]) -> str:
    """One line a file, unseen prompts: accuracy on pairs of all lengths, or mean Spearman within lists."""
    lines: dict[str, dict] = {}
    for r in rows:
        in_lists = r["file"].startswith("listwise")
        line = lines.setdefault(r["file"], {"file": r["file"], "figure": "Spearman" if in_lists else "accuracy"})
        line["n"] = f"{r['unseen lists']} lists" if in_lists else f"{r['unseen n']} pairs"
        line[r["scorer"]] = r["unseen rho"] if in_lists else r["unseen accuracy"]
    keys = ("file", "figure", "n", INSIDE, PROBE, PROMPTED, LENGTH)
    return table([{k: line.get(k) for k in keys} for line in lines.values()])


def page(found: dict) -> str:
    """The result file."""
    keys = ("file", "scorer", "n", "accuracy", "n matched", "matched", "balanced")
    keys += ("unseen n", "unseen accuracy", "unseen n matched", "unseen matched")
    in_lists = ("file", "scorer", "lists", "rho", "unseen lists", "unseen rho", "unseen n", "unseen accuracy")
    about = (
        "Accuracy is of the random rows of a file, of all lengths; matched is of pairs whose lengths differ by at most "
        "a fifth; balanced is the mean over pairs with a longer and with a shorter winner; rho is the mean Spearman "
        "correlation within lists. Means are over files of at least ten such pairs, each weighing the same. Settings "
        "were chosen on two fifths of the prompts; unseen are the others. States are in the judge's own precision, so "
        "figures move a little with the make-up of the batches."
    )
    parts = [table(found["summary"]), by_file(found["rows"])]
    for kind, shown in (("pairwise", keys), ("listwise", in_lists)):
        if rows := [{k: r.get(k) for k in shown} for r in found["rows"] if r["file"].startswith(kind)]:
            parts.append(table(rows))
    if found["curve"]:
        parts.append("In distribution, by the number of training prompts:\n\n" + table(found["curve"]))
    made = f"`{found['command']}`, commit {found['commit']}, {found['machine']}"
    return f"{made}\n\n{about}\n\n" + "\n".join(parts)


if __name__ == "__main__":
    main()
