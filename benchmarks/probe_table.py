"""Probes on public benchmarks: leave one benchmark out and in distribution, against prompted scores and length.

    LATENT_REWARDS_DATA=../shared/data python -m benchmarks.probe_table --sweep --ship latent_rewards/shipped/embedded

Collects what is missing of the features (`benchmarks.probe_sample`), trains the probes, writes
`benchmarks/results/probes-<judge>.{json,md}` and prints the tables. `--sweep` also draws accuracy by layer; `--ship`
also trains the probe that comes with the package, on files under MIT or Apache-2.0 only.

Sources, layer, strength and guards were chosen on dev prompts (`benchmarks.probe_sample.is_dev`); the columns that say
"unseen" are of the other prompts, which no choice looked at.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.model_selection import GroupKFold

from benchmarks.probe_sample import EVERY, EXTRA, FILES, RATED, Sample, arguments, collect
from benchmarks.throughput import command
from latent_rewards import JudgePrompt, readouts
from latent_rewards.features import Features
from latent_rewards.probe_card import table
from latent_rewards.probe_metrics import bootstrap, length_matched, mean_of_parts, pair_indices, pair_report, wins
from latent_rewards.probe_networks import head_scores
from latent_rewards.probe_selection import cross_validate
from latent_rewards.probe_training import Data, FitOptions, fit_head
from latent_rewards.probes import Probe, ProbeConfig

OPEN = ("MIT", "Apache-2.0")
PROBE, INSIDE, LENGTH, PROMPTED = "probe, benchmark left out", "probe, in distribution", "length", "prompted"


@dataclass(frozen=True)
class Recipe:
    """How probes of one judge are trained.

    Attributes:
        layers: read side by side where the benchmark is left out.
        sources: files that such a probe may be trained on.
        fit: its settings.
        inside: settings in distribution.
        inside_layers: layers in distribution; none is `layers`.
    """

    layers: tuple[int, ...]
    sources: tuple[str, ...]
    fit: FitOptions
    inside: FitOptions
    inside_layers: tuple[int, ...] = ()


_FIT = FitOptions(objective="bradley_terry", strength=1e-4, guards=("erase", "balance"))
_SOURCES = (
    "pairwise/alpacaeval_lenmatched", "pairwise/hh_harmless", "pairwise/hhh_alignment", "pairwise/llmeval2",
    "pairwise/faireval",
)  # fmt: skip
_BALANCE = dataclasses.replace(_FIT, guards=("balance",))
RECIPES = {
    "embedded": Recipe(
        (30,), _SOURCES, dataclasses.replace(_BALANCE, strength=5e-3), dataclasses.replace(_BALANCE, strength=3e-5),
        (16, 17, 18),
    ),
    "shipped": Recipe((17,), (*_SOURCES, "extra/alpacaeval"), _BALANCE, _BALANCE),
    "Qwen2.5-Coder-0.5B-Instruct": Recipe(
        (18,), (*_SOURCES, "pairwise/llmbar"), dataclasses.replace(_BALANCE, strength=1e-2), _FIT, (10,)
    ),
    "Qwen2.5-Coder-1.5B-Instruct": Recipe(
        (18,), (*_SOURCES, "pairwise/llmbar"), *[dataclasses.replace(_FIT, strength=1e-3)] * 2
    ),
}  # fmt: skip
DEFAULT = Recipe((16,), (*_SOURCES, "pairwise/llmbar"), _FIT, _FIT)
FEWEST = 10  # pairs of a file in a mean over files
IN_DISTRIBUTION = ("pairwise/alpacaeval_lenmatched", "pairwise/rmb", "pairwise/autoj")


@dataclass
class Bench:
    """One file: its sample, its features, and which rows of the sample could be read."""

    name: str
    sample: Sample
    features: Features

    def __post_init__(self) -> None:
        self.read = self.features.column("read").astype(bool)
        self.better, self.worse = pair_indices(self.column("label"), self.column("pair"))
        self.group = self.column("group")[self.better]
        self.unseen = ~self.sample.dev[self.read][self.better]
        self.random = self.sample.random[self.read][self.better]
        self.adversarial = np.char.startswith(self.sample.subset[self.read][self.better], "Adversarial")
        self.matched = length_matched(self.column("length"), self.better, self.worse)
        self.longer = np.sign(self.column("length")[self.better] - self.column("length")[self.worse])

    @property
    def family(self) -> str:
        """Files of one family are never on both sides."""
        return EVERY[self.name].family

    def column(self, name: str) -> np.ndarray:
        """A column of the readable rows."""
        return self.features.column(name)[self.read]


def rows_of(benches: list[Bench], layers: tuple[int, ...]) -> Data:
    """Rows of several files; pair numbers and sources are made distinct."""
    parts, start = [], 0
    for i, bench in enumerate(benches):
        data = Data.of(bench.features, layers)
        parts.append(dataclasses.replace(data, pair=data.pair + start, source=np.full(len(data), i)))
        start += int(data.pair.max()) + 1
    return Data(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Data)))


def left_out(benches: dict[str, Bench], name: str, recipe: Recipe, *, dev_only: bool = False) -> np.ndarray:
    """Scores of a file by a probe trained on the sources of other families, without this file's prompts."""
    test = Data.of(benches[name].features, recipe.layers)
    sources = [benches[s] for s in recipe.sources if s in benches and benches[s].family != benches[name].family]
    train = rows_of(sources, recipe.layers)
    if dev_only:
        train = train.take(np.concatenate([b.sample.dev[b.read] for b in sources]))
    train = train.take(~np.isin(train.group, test.group))
    return head_scores(test.x, fit_head(train, recipe.fit, n_layers=len(recipe.layers)), "linear")[:, 0]


def in_distribution(benches: dict[str, Bench], name: str, recipe: Recipe, prompts: int | None = None) -> np.ndarray:
    """Out-of-fold scores of a file by probes trained on other prompts of its family alone; NaN for few prompts."""
    layers = recipe.inside_layers or recipe.layers
    test = Data.of(benches[name].features, layers)
    if len(np.unique(test.group)) < 40:
        return np.full(len(test), np.nan)
    names = [name, *(n for n, b in benches.items() if n != name and b.family == benches[name].family)]
    train = rows_of([benches[n] for n in names if n not in RATED], layers)
    return out_of_fold(train, recipe.inside, len(layers), prompts)[: len(test)]


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
        out |= {f"{tag}lists": int(part.sum()), f"{tag}rho": bootstrap(rhos[part], groups[part])}
    return out


def report(bench: Bench, scorer: str, score: np.ndarray, only: np.ndarray | None = None, name: str = "") -> dict:
    """One line of the table; `only` picks a part of the pairs."""
    won = wins(score, bench.better, bench.worse)
    part = np.ones(len(won), bool) if only is None else only
    row = {"file": name or bench.name, "scorer": scorer}
    for tag, rows in (("unseen ", part & bench.unseen), ("", part)):
        flat, matched = rows & bench.random, rows & bench.matched
        sides = [won[rows & (bench.longer == s)] for s in (1, -1)]
        row |= {
            f"{tag}n": int(flat.sum()), f"{tag}accuracy": bootstrap(won[flat], bench.group[flat]),
            f"{tag}n matched": int(matched.sum()), f"{tag}matched": bootstrap(won[matched], bench.group[matched]),
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
            parts = _enough([_won(b, s, b.matched & (b.unseen if tag else True)) for b, s in mine])
            row[f"{tag}n matched"] = sum(len(p[0]) for p in parts)
            row[f"{tag}mean matched"] = mean_of_parts(parts)
        row["unseen mean accuracy"] = mean_of_parts(_enough([_won(b, s, b.random & b.unseen) for b, s in mine]))
        if names is pairwise and "pairwise/llmbar" in benches:
            bench = benches["pairwise/llmbar"]
            for tag in ("unseen ", ""):
                part = _won(bench, scores[bench.name][scorer], bench.adversarial & (bench.unseen if tag else True))
                row[f"{tag}LLMBar adversarial"] = bootstrap(*part)
        out.append(row)
    return out


def _enough(parts: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [p for p in parts if len(p[0]) >= FEWEST]


def curve(benches: dict[str, Bench], recipe: Recipe, sizes: tuple[int, ...] = (25, 50, 100, 200, 400)) -> list[dict]:
    """In distribution, by the number of training prompts: how much data a probe wants."""
    out = []
    for name in (n for n in IN_DISTRIBUTION if n in benches):
        bench = benches[name]
        have = len(np.unique(bench.group)) * 4 // 5
        for prompts in (*(s for s in sizes if s < have), have):
            score = in_distribution(benches, name, recipe, prompts)
            row = {"file": name, "training prompts": prompts, "unseen n": int(bench.unseen[bench.random].sum())}
            row["unseen accuracy"] = bootstrap(*_won(bench, score, bench.random & bench.unseen))
            row["unseen matched"] = bootstrap(*_won(bench, score, bench.matched & bench.unseen))
            out.append(row)
    return out


def _won(bench: Bench, score: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return wins(score, bench.better, bench.worse)[rows], bench.group[rows]


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
                dev = _enough([_won(benches[n], s, benches[n].matched & ~benches[n].unseen) for n, s in scores.items()])
                row = {"layers": side_by_side, "strength": strength, "guards": "+".join(guards)}
                row |= {
                    "dev mean matched": mean_of_parts(dev),
                    "n": sum(len(v) for v, _ in dev),
                }
                if hard := benches.get("pairwise/llmbar"):
                    part = _won(hard, scores[hard.name], hard.adversarial & ~hard.unseen)
                    row["dev LLMBar adversarial"] = bootstrap(*part)
                inside = [benches[n] for n in IN_DISTRIBUTION if n in benches]
                row["dev in distribution"] = mean_of_parts(
                    [_won(b, in_distribution(benches, b.name, tried), b.matched & ~b.unseen) for b in inside]
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
    out.with_name(f"{out.name}-layers.json").write_text(json.dumps(rows, indent=1))
    draw(rows, out.with_name(f"{out.name}-layers.png"), out.name.removeprefix("probes-"))


def out_of_fold(data: Data, fit: FitOptions, n_layers: int, prompts: int | None = None) -> np.ndarray:
    """(N,) scores of rows by probes that saw none of their prompts, and at most `prompts` others."""
    score = np.full(len(data), np.nan)
    for _, held in GroupKFold(5, shuffle=True, random_state=42).split(data.x, groups=data.group):
        groups = np.random.default_rng(42).permutation(np.setdiff1d(data.group, data.group[held]))
        rows = data.take(np.isin(data.group, groups[:prompts]))
        score[held] = head_scores(data.x[held], fit_head(rows, fit, n_layers=n_layers), "linear")[:, 0]
    return score


def card_figures(benches: dict[str, Bench], data: Data, recipe: Recipe, rows: list[dict]) -> list[dict]:
    """What a card says of a probe: every benchmark left out in turn, then other prompts of the sources."""
    base = {r["file"]: r["accuracy"] for r in rows if r["scorer"] == LENGTH}
    left = [r for r in rows if r["scorer"] == PROBE and r["file"].startswith("pairwise")]
    keys = ("n", "accuracy", "n matched", "matched", "unseen n matched", "unseen matched")
    out = [
        {"file": r["file"], "trained on": "other benchmarks"}
        | {k: r[k] for k in keys}
        | {"length baseline": base[r["file"]]}
        for r in left
    ]
    score = out_of_fold(data, recipe.fit, len(recipe.layers))
    for i, name in enumerate(recipe.sources):
        part = data.take(data.source == i)
        found = pair_report(score[data.source == i], part.label, part.pair, part.group, part.length)
        row = {"file": name, "trained on": "other prompts"}
        row |= {"n": found["n"], "accuracy": found["accuracy"]}
        row |= {"n matched": found["n_matched"], "matched": found["matched"]}
        out.append(
            row | {"unseen n matched": None, "unseen matched": None, "length baseline": found["length_baseline"]}
        )
    return out


def ship(benches: dict[str, Bench], prompt: JudgePrompt, recipe: Recipe, found: dict, to: str) -> None:
    """Train the shipped probe on the sources, and write its card."""
    sources = [benches[s] for s in recipe.sources]
    assert all(EVERY[b.name].licence in OPEN for b in sources)
    data = rows_of(sources, recipe.layers)
    tensors = fit_head(data, recipe.fit, n_layers=len(recipe.layers))
    score = head_scores(data.x, tensors, "linear")[:, 0]
    tensors = {"weight": tensors["weight"] / score.std(), "bias": (tensors["bias"] - score.mean()) / score.std()}
    training = {
        "licence": "apache-2.0",
        "data": [f"{b.name}: {len(b.features)} completions ({EVERY[b.name].licence})" for b in sources],
        "settings": dataclasses.asdict(recipe.fit)
        | {"layers": recipe.layers, "scaled": "training scores have mean 0 and deviation 1"},
        "metrics": card_figures(benches, data, recipe, found["rows"]),
        "command": found["command"],
        "limits": [
            'No figure is of rows that a probe was trained on. "Other benchmarks": probes of the same recipe without '
            'the benchmark in question. "Other prompts": probes of the same recipe without the prompts in question. '
            "Settings were chosen on two fifths of the prompts; the others are the unseen ones.",
            "A 135M judge: it orders answers like those it was trained on, and is near chance on other benchmarks. "
            "Not for training a model that people will use.",
            "On pairs built so that the worse answer looks better (LLMBar adversarial) it is at chance.",
            "Texts of more than about 3,500 characters were left out of training and of the figures.",
        ],
    }
    width = data.x.shape[1] // len(recipe.layers)
    config = ProbeConfig(
        found["judge"],
        found["revision"],
        prompt.hash,
        recipe.layers,
        width,
        objective=recipe.fit.objective,
        training=training,
    )
    Probe(config, tensors, prompt).save(to)


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
        "command": command("probe_table"), "judge": info.judge,
        "revision": info.revision, "prompt_hash": prompt.hash, "recipe": dataclasses.asdict(recipe), "rows": rows,
        "summary": summary(benches, scores), "curve": curve(benches, recipe),
    }  # fmt: skip
    out = args.out / f"probes-{info.judge}{f'-{args.recipe}' if args.recipe else ''}"
    out.with_name(f"{out.name}.json").write_text(json.dumps(found, indent=1))
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
    return f"`{found['command'].strip()}`\n\n{about}\n\n" + "\n".join(parts)


if __name__ == "__main__":
    main()
