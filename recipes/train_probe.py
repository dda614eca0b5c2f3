"""Train a probe reward on preference data and a frozen judge, and draw accuracy by layer.

Source: Girrbach et al. 2025, "Latent judges", eq. 3-5 and appendix B (arXiv 2509.24678).

    python recipes/train_probe.py --config configs/train_probe/embedded_cpu.yaml

Writes to `output_dir`: the probe (for `ProbeReward(judge, output_dir)`), its card with figures on unseen prompts beside
the prompted judge and the length baseline, `sweep.json`, `layers.png`, and `run.json` with the resolved
configuration. A second run with the same data reuses the features.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import versions
from latent_rewards.files.types import Row
from latent_rewards.judge.layouts import BadRow
from latent_rewards.probes.card import table
from latent_rewards.probes.examples import gather, sources
from latent_rewards.probes.fit import FitOptions
from latent_rewards.probes.train import RunOptions, train_probe
from latent_rewards.stats.pairs import PROBE_LENGTH_TOLERANCE


@dataclass
class ProbeArguments:
    """What to train on."""

    data: list[str] = HfArg(default_factory=list, help="JSON Lines files: pairs, lists or ratings.")
    output_dir: str = HfArg(default="runs/probe", help="Folder of the probe.")
    judge: str = HfArg(default="embedded", help="Hub id, folder or 'embedded'.")
    prompt: str = HfArg(default="weighted", help="Judge prompt: shipped name or file.")
    dtype: str = HfArg(default="auto", help="Of the judge.")
    max_length: int | None = HfArg(default=None, help="Most tokens the judge reads.")
    limit: int | None = HfArg(default=None, help="Most rows of each file.")
    licence: str = HfArg(default="other", help="Of the data, for the card.")
    layers: list[int] = HfArg(default_factory=list, help="Layers to try; none is all.")
    strengths: list[float] = HfArg(default_factory=lambda: [1e-4, 1e-3, 1e-2], help="L2 strengths.")
    folds: int = HfArg(default=5, help="Of the cross-validation, grouped by prompt.")
    select: str = HfArg(default="balanced", help="accuracy, matched, balanced or r.")
    test_share: float = HfArg(default=0.2, help="Share of prompts for the final figures.")
    architecture: str = HfArg(default="linear", help="linear, mlp or orthogonal.")
    objective: str = HfArg(default="bradley_terry", help="bce, kto, bradley_terry, regression, ordinal.")
    guards: list[str] = HfArg(default_factory=lambda: ["erase", "balance"], help="Against length.")
    balance_sources: bool = HfArg(default=False, help="Each data file weighs the same.")
    mix_layers: bool = HfArg(default=False, help="One probe on a learnt mixture of all layers.")
    seed: int = HfArg(default=42, help="Of everything random.")


def main(args: ProbeArguments) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(args.output_dir)
    fit = FitOptions(
        architecture=args.architecture, objective=args.objective, guards=tuple(args.guards), seed=args.seed,
        balance_sources=args.balance_sources, mix_layers=args.mix_layers,
    )  # fmt: skip
    run = RunOptions(
        layers=tuple(args.layers), strengths=tuple(args.strengths), folds=args.folds, select=args.select,
        test_share=args.test_share, concatenate=args.mix_layers,
    )  # fmt: skip
    judge = HFJudge(args.judge, dtype=args.dtype, max_length=args.max_length)
    bad: list[BadRow] = []
    examples = gather(args.data, limit=args.limit, bad=bad)
    training = {"licence": args.licence, "data": sources(args.data, bad), "command": f"python {' '.join(sys.argv)}"}
    probe, rows = train_probe(
        judge, JudgePrompt.load(args.prompt), examples, features_folder=out / "features",
        fit=fit, run=run, training=training,
    )  # fmt: skip
    probe.save(out)
    write_json(out / "sweep.json", rows)
    packages = versions("torch", "transformers", "scikit-learn")
    about = {"judge_revision": judge.revision, "prompt_hash": probe.prompt.hash, "packages": packages}
    write_json(out / "run.json", {"arguments": dataclasses.asdict(args), **about})
    if rows:
        draw(rows, out / "layers.png", judge.name)
    print(table(probe.config.training["metrics"]))
    print(f"layer {probe.config.layers}, saved in {out}: ProbeReward(HFJudge({args.judge!r}), {str(out)!r})")


def draw(rows: list[Row], path: Path, judge: str) -> None:
    """Cross-validated accuracy by layer with its 95 % interval, each layer at its best strength."""
    layers = sorted({r["layer"] for r in rows})
    fig = Figure(figsize=(8, 4.5), layout="constrained")
    ax = fig.subplots()
    if "r" in rows[0]:
        ax.plot(layers, [max(r["r"] for r in rows if r["layer"] == k) for k in layers], "o-", label="Pearson r")
    else:
        top = [max((r for r in rows if r["layer"] == k), key=lambda r: r["balanced"]) for k in layers]
        for key, label, colour in (
            ("accuracy", "all pairs", "C0"),
            ("matched", f"equal length (within {PROBE_LENGTH_TOLERANCE:.0%})", "C1"),
        ):
            mean, low, high = zip(*(r[key] for r in top), strict=True)
            ax.plot(
                layers, mean, "o-", color=colour,
                label=f"{label}, n = {top[0]['n' if key == 'accuracy' else 'n_matched']}",
            )  # fmt: skip
            ax.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.axhline(top[0]["length_baseline"][0], color="0.4", ls="--", label="longer wins")
        ax.axhline(0.5, color="0.7", lw=1)
        ax.set_ylabel("pairwise accuracy, 95 % interval")
    ax.set_xlabel("layer")
    ax.set_title(f"Probe on {judge} by layer, cross-validated by prompt")
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(path, dpi=150)


if __name__ == "__main__":
    from trl import TrlParser

    main(*TrlParser(ProbeArguments).parse_args_and_config())
