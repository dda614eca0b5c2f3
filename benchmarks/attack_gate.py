r"""Trains what tells answers from what only looks like one: a probe on the judge's states, and a regression on words.

    LATENT_REWARDS_DATA=<folder> python -m benchmarks.attack_gate --out runs/gate --ship

Training prompts come from files under MIT or Apache-2.0 alone, and none of them stands in a file that the attack table
is measured on. All choices (strength, how much the words count, from where on and how steeply points are taken away)
are made on scores of prompts left out of the fit, five folds by prompt; what was chosen and its figures go to
`gate.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from latent_rewards import HFJudge, JudgePrompt, readouts
from latent_rewards.evaluation import benchmarks
from latent_rewards.evaluation.attacks import best_response
from latent_rewards.evaluation.benchmarks.rows import Item
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import Example
from latent_rewards.probes.fit import Data, FitOptions, fit_head
from latent_rewards.probes.negatives import PHRASES, attack_examples
from latent_rewards.probes.networks import state_scores
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.rewards import relevance
from latent_rewards.rewards.guarded import broken_guards

FILES = ("llmbar", "llmbar_casestudy", "alpacaeval_lenmatched", "hhh_alignment", "llmeval2", "hh_harmless")
MEASURED = ("pairwise/autoj", "pairwise/rmb", "pairwise/rm_bench")
LAYERS = (12, 15, 18)
STRENGTHS = (0.003, 0.01, 0.03)
SHARES, SLOPES = (0.05, 0.1, 0.2, 0.35, 0.5), (1.0, 2.0, 4.0, 8.0)
ENOUGH = 1.1  # the mildest setting whose share of successes is within this factor of the best one is taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--prompt", default="weighted")
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    parser.add_argument("--ship", action="store_true", help="put probe and word weights into the package")
    parser.add_argument("--more", type=int, default=300, help="prompts of the second part that are no pairs")
    args = parser.parse_args()
    judge, prompt = HFJudge(args.judge), JudgePrompt.load(args.prompt)
    parts = parts_of(args.more)
    kept = {
        name: collect_features(judge, prompt, part, LAYERS, folder=args.out / f"features-{name}")
        for name, part in parts.items()
    }
    every = list(itertools.chain.from_iterable(parts.values()))
    data = joined([Data.of(f, LAYERS) for f in kept.values()])
    assert len(data) == len(every), "a text could not be read; all are short"
    rated = np.concatenate([f.column("label_logprobs") for f in kept.values()])
    assert prompt.labels is not None
    base = readouts.expected_rating(torch.tensor(rated), prompt.labels.values).numpy()
    use = np.flatnonzero([key(e) not in measured_prompts() for e in every])
    data, base, examples = data.take(use), base[use], [every[i] for i in use]
    facts, tensors = chosen(data, examples, base)
    words = fit_words(np.array([relevance.features(e.prompt, e.completion) for e in examples]), data.label)
    config = ProbeConfig(
        judge.name, judge.revision, prompt.hash, LAYERS, data.x.shape[1] // len(LAYERS), "normed", "linear", ("score",),
        "bce", record(facts),
    )  # fmt: skip
    probe = Probe(config, tensors, prompt)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gate.json").write_text(to_json(provenance("benchmarks.attack_gate") | facts, indent=1) + "\n")
    print(json.dumps(facts))
    probe.save(args.out / "probe")
    if args.ship:
        shipped = Path(relevance.__file__).parents[1] / "shipped"
        probe.save(shipped / "embedded_gate")
        (shipped / "relevance.json").write_text(to_json(words, indent=1) + "\n")


def parts_of(more: int) -> dict[str, list[Example]]:
    """Honest answers and their attack negatives, in two parts: each is read into a folder of its own."""
    pairs = {key(i): i for name in FILES for i in benchmarks.load(f"pairwise/{name}", 110, max_chars=800).items}
    first = [i for k, i in enumerate(pairs.values()) if k % 4]
    harmless = benchmarks.load("pairwise/hh_harmless", 110 + more, max_chars=500).items[-more // 3 :]
    general = [i for i in benchmarks.load("single/halueval_general", max_chars=500).items if i.gold[0] == 1][:more]
    second = {key(i): i for i in [*list(pairs.values())[::4], *harmless, *general]}
    second = {k: i for k, i in second.items() if k not in {key(j) for j in first}}
    return {
        "first": made_of(first, others=2, phrases=2),
        "second": made_of(list(second.values()), others=3, phrases=0),
    }


def made_of(items: list[Item], **how: int) -> list[Example]:
    """Honest answers and their attack negatives."""
    return attack_examples([i.prompt for i in items], [best_response(i) for i in items], **how)


def key(item: Item | Example) -> str:
    """Its prompt, to compare."""
    return json.dumps(item.prompt)


@functools.cache
def measured_prompts() -> frozenset[str]:
    """All prompts of the files that the attack table is measured on; none is trained on."""
    return frozenset(key(i) for name in MEASURED for i in benchmarks.load(name).items)


def joined(parts: list[Data]) -> Data:
    """Several sets of rows as one; pair numbers stay apart."""
    at = 0
    for i, part in enumerate(parts):
        parts[i] = dataclasses.replace(part, pair=part.pair + at)
        at += int(part.pair.max()) + 1
    return Data(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Data)))


def kinds_of(examples: list[Example]) -> np.ndarray:
    """(N,) "honest", "start", "phrase" or "other" (another prompt's answer)."""
    out, honest = [], ""
    for e in examples:
        if e.label == 1:
            honest = " ".join(str(e.completion).split())
        phrase, start = e.completion in PHRASES, honest.startswith(str(e.completion))
        out.append("honest" if e.label == 1 else "phrase" if phrase else "start" if start else "other")
    return np.array(out)


def fit_words(x: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """The regression on words, as `latent_rewards.rewards.relevance` reads it."""
    mean, scale = x.mean(0), x.std(0)
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit((x - mean) / scale, label)
    return {
        "features": list(relevance.FEATURES), "mean": mean.tolist(), "scale": scale.tolist(),
        "weights": model.coef_[0].tolist(), "bias": float(model.intercept_[0]),
    }  # fmt: skip


def chosen(data: Data, examples: list[Example], base: np.ndarray) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is chosen on prompts left out of the fit, with its figures; and the probe fitted on all.

    Args:
        data: states of the examples.
        examples: N.
        base: (N,) scores of the judge under attack, whose order is to be kept among answers.
    """
    kind = kinds_of(examples)
    broken = np.array([bool(broken_guards(e.prompt, e.completion)) for e in examples])
    x = np.array([relevance.features(e.prompt, e.completion) for e in examples])
    groups = np.unique(data.group)
    fold = np.random.default_rng(0).integers(0, 5, len(groups))[np.searchsorted(groups, data.group)]

    def success(score: np.ndarray) -> dict[str, float]:
        return outscored(np.where(broken, -np.inf, score), data.pair, kind)

    gates = {c: unseen_scores(data, fold, c) for c in STRENGTHS}
    sweep = {c: success(g) for c, g in gates.items()}
    strength = min(sweep, key=lambda c: sweep[c]["mean"])
    gate, words = gates[strength], unseen_words(x, data.label, fold)
    both = LogisticRegression(class_weight="balanced").fit(np.c_[gate, words], data.label).coef_[0]
    weight = float(both[1] / both[0])
    total = gate + weight * words
    honest = kind == "honest"
    table = []
    for share, slope in itertools.product(SHARES, SLOPES):
        below, steep = np.quantile(total[honest], share), slope * base[honest].std() / total[honest].std()
        found = success(base + steep * np.minimum(0, total - below))
        table.append({"share_below": share, "slope": slope, "below": float(below), **found})
    least = min(row["mean"] for row in table)
    setting = next(row for row in table if row["mean"] <= ENOUGH * least)
    curve = {
        n: fitted_on(data, fold, n, strength, success) for n in (len(groups) // 8, len(groups) // 4, len(groups) // 2)
    }
    facts = {
        "prompts": len(groups), "texts": len(data), "strength": strength, "relevance": weight,
        "gate_below": setting["below"], "spread_of_gate": float(total[honest].std()),
        "spread_of_judge": float(base[honest].std()), "setting": setting,
        "outscored": {
            "judge": success(base), "probe": sweep[strength], "words": success(words), "probe_and_words": success(total)
        },
        "probe_by_prompts": {str(n): s for n, s in curve.items()} | {str(len(groups)): sweep[strength]},
        "settings": table, "strengths": {str(c): s for c, s in sweep.items()},
    }  # fmt: skip
    return facts, fit_head(data, FitOptions(strength=strength), n_layers=len(LAYERS))


def unseen_scores(data: Data, fold: np.ndarray, strength: float) -> np.ndarray:
    """(N,) of a probe fitted without the prompt's fold; rows of folds 5 and up are scored like 0 and up, not fitted."""
    out = np.zeros(len(data))
    for k in range(5):
        tensors = fit_head(data.take((fold != k) & (fold < 5)), FitOptions(strength=strength), n_layers=len(LAYERS))
        out[fold % 5 == k] = state_scores(data.x[fold % 5 == k], tensors, "linear")[:, 0]
    return out


def fitted_on(
    data: Data, fold: np.ndarray, prompts: int, strength: float, success: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, float]:
    """Success against a probe fitted on fewer prompts."""
    few = np.random.default_rng(1).permutation(np.unique(data.group))[:prompts]
    return success(unseen_scores(data, np.where(np.isin(data.group, few), fold, fold + 5), strength))


def unseen_words(x: np.ndarray, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(N,) of the regression on words fitted without the prompt's fold."""
    out = np.zeros(len(x))
    for k in range(5):
        fit = fit_words(x[fold != k], label[fold != k])
        out[fold == k] = (x[fold == k] - fit["mean"]) / np.array(fit["scale"]) @ np.array(fit["weights"]) + fit["bias"]
    return out


def outscored(score: np.ndarray, pair: np.ndarray, kind: np.ndarray) -> dict[str, float]:
    """Share of attacks that score at least as high as the honest answer to the same prompt, by kind, and their mean."""
    honest = dict(zip(pair[kind == "honest"].tolist(), score[kind == "honest"].tolist(), strict=True))
    hit = score >= np.array([honest[p] for p in pair.tolist()])
    by_kind = {k: float(hit[kind == k].mean()) for k in ("other", "start", "phrase")}
    return {**by_kind, "mean": float(np.mean(list(by_kind.values())))}


def record(facts: dict[str, Any]) -> dict[str, Any]:
    """What the model card says of the training."""
    return {
        "data": [
            f"chosen answers of {', '.join(FILES)} and right ones of halueval_general ({facts['prompts']} prompts) "
            "against attack negatives"
        ],
        "licence": "apache-2.0",
        "limits": ["Made against empty and misplaced answers; how good an answer is, it hardly knows."],
        "command": "python -m benchmarks.attack_gate",
        "settings": {"strength": facts["strength"], "layers": list(LAYERS), "objective": "bce", "folds": 5},
        "metrics": [{"figure": "attacks that outscore the answer, prompts left out", **facts["outscored"]["probe"]}],
    }


if __name__ == "__main__":
    main()
