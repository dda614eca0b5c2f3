"""Route prompts to models: predict each model's score from the prompt, and measure what that is worth.

What it does: embeds the prompts; predicts the score of every model on every prompt from the prompts of other folds,
with gold scores as the training signal and with a frozen judge's scores; reports R2 per model and the gold quality of
the routed responses beside the best single model, a random one and the oracle; draws quality against price; saves a
router.

Source: section 5.2 of Girrbach et al. 2025 (arXiv 2509.24678), who found no gain over the best single model.

    LATENT_REWARDS_DATA=<folder> python -m recipes.route --config configs/route/alpacaeval.yaml [--any_key value ...]

Expected in `output_dir`: report.md, results.json, r2.png, quality_cost.png, router/ (for `Router.load`), run.json.
Scores of the judge are kept in `scores/`, so that a stopped run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers.hf_argparser import HfArg

from latent_rewards import HFJudge, build_reward
from latent_rewards.evaluation.benchmarks import load
from latent_rewards.evaluation.benchmarks.local import find
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import PACKAGES, as_options, versions
from latent_rewards.files.sources import open_binary
from latent_rewards.files.types import JsonObject, Prompt
from latent_rewards.rewards.response_scores import score_responses
from latent_rewards.routing.embeddings import EMBEDDER, embed_prompts
from latent_rewards.routing.policies import (
    compare_policies,
    fold_numbers,
    mean_out_of_fold,
    predict_out_of_fold,
    quality_cost_curve,
    r_squared_by_model,
)
from latent_rewards.routing.router import Router
from recipes.route_report import Costs, Signal, draw_quality_cost, draw_r2, write_markdown

logger = logging.getLogger(__name__)


@dataclass
class RouteArguments:
    """What to route and how; on the command line mappings are quoted YAML."""

    data: str = HfArg(
        default="",
        help="JSON Lines (.gz) of prompt, models, responses, gold; or a name under LATENT_REWARDS_DATA; 'name#300'.",
    )
    output_dir: str = HfArg(default="runs/route", help="Folder of the report and the router.")
    embedder: str = HfArg(default=EMBEDDER, help="Model of sentence-transformers.")
    kinds: list[str] = HfArg(default_factory=lambda: ["knn", "ridge", "boosted"], help="Predictors.")
    k: int = HfArg(default=50, help="Neighbours of knn.")
    folds: int = HfArg(default=10, help="Of the cross-validation over prompts.")
    seed: int = HfArg(default=0, help="Of the folds and of the subset that the judge reads.")
    judge: str | None = HfArg(default=None, help="Judge, or a mapping of `HFJudge` options; 'none' for gold alone.")
    rewards: list[str] = HfArg(default_factory=lambda: ["weighted"], help="Rewards read from the judge.")
    judge_models: list[str] = HfArg(default_factory=list, help="Models whose responses it reads; none: all.")
    judge_prompts: int | None = HfArg(default=None, help="Number of prompts it reads; none: all.")
    prices: str | None = HfArg(default=None, help="Mapping of model to price of a response.")
    resamples: int = HfArg(default=1000, help="Bootstrap draws of every interval.")
    threads: int | None = HfArg(default=None, help="CPU threads of torch.")


@dataclass
class Data:
    """P prompts, their M models' responses (None where there is none) and gold scores (P, M; NaN there)."""

    prompts: list[Prompt]
    models: list[str]
    responses: list[list[Prompt | None]]
    gold: np.ndarray

    def part(self, rows: np.ndarray, models: list[str]) -> Data:
        """Some prompts and models of it."""
        columns = [self.models.index(m) for m in models]
        responses = [[self.responses[i][j] for j in columns] for i in rows]
        return Data([self.prompts[i] for i in rows], models, responses, self.gold[np.ix_(rows, columns)])


def load_lists(data: str | Path) -> Data:
    """Rows of `prompt`, `models`, `responses`, `gold`; a prompt need not have every model.

    Args:
        data: file, or name under $LATENT_REWARDS_DATA such as "listwise/alpacaeval"; "#300" behind it takes the same
            sample of so many prompts as `latent_rewards.evaluation.benchmarks.load` does.

    Raises:
        FileNotFoundError: neither; the message says what the file must hold.
        ValueError: a row lacks a field, or its lists differ in length; the message has the line number.
    """
    name, _, limit = str(data).partition("#")
    path = Path(name) if Path(name).is_file() else find(name)
    if path is None:
        raise FileNotFoundError(
            f"no {name!r}, nor a file of that name under LATENT_REWARDS_DATA "
            f"({os.environ.get('LATENT_REWARDS_DATA', 'not set')}); give --data a .jsonl or .jsonl.gz file, one prompt "
            'a line: {"prompt": ..., "models": [...], "responses": [...], "gold": [...]}'
        )
    with open_binary(path, "rb") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if limit:
        items = load(str(data)).items
        sample = {json.dumps([item.prompt, list(item.responses)]) for item in items}
        rows = [row for row in rows if json.dumps([row.get("prompt"), row.get("responses")]) in sample]
    for number, row in enumerate(rows, 1):
        lacking = [key for key in ("prompt", "models", "responses", "gold") if key not in row]
        if lacking:
            raise ValueError(f"{path}, line {number}: missing {lacking}")
        if len({len(row[key]) for key in ("models", "responses", "gold")}) != 1:
            raise ValueError(f"{path}, line {number}: models, responses and gold differ in length")
    models = sorted({m for row in rows for m in row["models"]})
    responses: list[list[Prompt | None]] = [[None] * len(models) for _ in rows]
    gold = np.full((len(rows), len(models)), np.nan)
    for i, row in enumerate(rows):
        for model, text, score in zip(row["models"], row["responses"], row["gold"], strict=True):
            j = models.index(model)
            responses[i][j], gold[i, j] = text, score
    return Data([row["prompt"] for row in rows], models, responses, gold)


def evaluate_signal(args: RouteArguments, data: Data, embeddings: np.ndarray, signal: np.ndarray) -> Signal:
    """Routers trained on one signal (P, M): R2 on that signal, and gold quality of what they choose."""
    fold = fold_numbers(len(data.prompts), args.folds, args.seed)
    mean = mean_out_of_fold(signal, fold)
    predicted = {kind: predict_out_of_fold(embeddings, signal, fold, kind=kind, k=args.k) for kind in args.kinds}
    r2 = {
        kind: dict(zip(data.models, r_squared_by_model(p, signal, resamples=args.resamples), strict=True))
        for kind, p in {"mean": mean, **predicted}.items()
    }
    policies = compare_policies(
        {**predicted, "signal itself": signal}, mean, data.gold, resamples=args.resamples
    )  # fmt: skip
    return {"r2": r2, "policies": policies, "predicted": predicted, "prompts": len(data.prompts), "models": data.models}


def read_judge(args: RouteArguments, data: Data) -> tuple[np.ndarray, Data, dict[str, np.ndarray], JsonObject]:
    """The subset the judge reads (row numbers and data), its scores, and what that took."""
    assert args.judge is not None
    judge = HFJudge(**as_options(args.judge, "model"))
    rewards = []
    for entry in args.rewards:
        options = as_options(entry, "reward")
        rewards.append(build_reward(options.pop("reward"), judge, **options))
    n = len(data.prompts) if args.judge_prompts is None else min(args.judge_prompts, len(data.prompts))
    rows = np.sort(np.random.default_rng(args.seed).permutation(len(data.prompts))[:n])
    part = data.part(rows, args.judge_models or data.models)
    folder = Path(args.output_dir) / "scores"
    found = score_responses(rewards, part.prompts, part.responses, cache=folder)
    missing = {name: int(np.isnan(s[~np.isnan(part.gold)]).sum()) for name, s in found.scores.items()}
    facts = {"judge": judge.name, "revision": judge.revision, "missing": missing, "seconds": found.seconds}
    return rows, part, found.scores, facts


def cost_curve(args: RouteArguments, data: Data, predicted: dict[str, np.ndarray]) -> Costs | None:
    """Quality against price for every router, and the single models on the same axes."""
    if args.prices is None:
        return None
    prices = yaml.safe_load(args.prices) if isinstance(args.prices, str) else args.prices
    lacking = sorted(set(data.models) - set(prices))
    if lacking:
        raise ValueError(f"prices lack {lacking}")
    price = np.array([float(prices[m]) for m in data.models])
    weights = [0.0, *np.geomspace(1e-4, 1.0, 25)]
    single = {m: (float(p), float(np.nanmean(data.gold[:, i]))) for i, (m, p) in enumerate(zip(data.models, price))}  # noqa: B905
    curves = {kind: quality_cost_curve(p, data.gold, price, weights) for kind, p in predicted.items()}
    return {"curves": curves, "single": single}


def main(argv: list[str] | None = None) -> int:
    """Run the recipe."""
    from trl import TrlParser

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    (args,) = TrlParser(RouteArguments).parse_args_and_config(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    data = load_lists(args.data)
    if len(data.prompts) < 2:
        raise SystemExit("error: routing needs two prompts at the least")
    if args.folds > len(data.prompts):
        print(f"{len(data.prompts)} prompts: as many folds in place of {args.folds}", flush=True)
        args.folds = len(data.prompts)
    embeddings = embed_prompts(data.prompts, args.embedder)
    signals = {"gold": evaluate_signal(args, data, embeddings, data.gold)}
    facts: JsonObject = {}
    if args.judge not in (None, "none"):
        rows, part, scores, facts = read_judge(args, data)
        if part.gold.shape != data.gold.shape:
            signals["gold, judge's subset"] = evaluate_signal(args, part, embeddings[rows], part.gold)
        signals |= {f"judge: {n}": evaluate_signal(args, part, embeddings[rows], s) for n, s in scores.items()}
    costs = cost_curve(args, data, signals["gold"]["predicted"])
    router = Router(data.models, k=args.k, embedder=args.embedder)
    router.fit(data.prompts, data.gold, embeddings=embeddings).save(out / "router")
    record = {"config": asdict(args), "versions": versions(*PACKAGES), "judge": facts, "command": " ".join(sys.argv)}
    write_json(out / "run.json", record)
    text = write_markdown(out, args, signals, facts, costs)
    draw_r2(out / "r2.png", signals["gold"]["r2"])
    if costs is not None:
        draw_quality_cost(out / "quality_cost.png", costs)
    print(f"{text}\nfiles: {out}/", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
