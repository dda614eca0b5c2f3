"""The same judge, read in several ways: which of its rewards teaches a policy to be right? GRPO runs side by side.

What it does: teaches a small policy to answer the fact set right in some part of its answers and otherwise as policies
fail by themselves (another fact, friendly prose, a hedge); trains it with TRL's GRPOTrainer from that start against one
reward at a time, with the same questions, seeds and number of judged answers; and counts right answers to held-out
questions, by a check of strings that no judge has a part in. What the judge has read is kept, so a text is read once
over all runs; what a step pays is measured apart, with nothing kept. A run that is there is not run again.

    python -m recipes.head_to_head --config configs/head_to_head/qwen2.5_coder_1.5b.yaml [--only weighted --seeds 0]

On an accelerator policy and judge share it, and `--jobs 8` makes eight runs at once, each in a process of its own with
a judge of its own: seed by seed, so that what is there when it is stopped can be compared.

Expected in `output_dir`: start/ (the policy before), runs/<reward>-<seed>.json, results.json, table.md, curves.png; the
last three are written anew after every run. Source: GRPO is Shao et al. 2024 (arXiv 2402.03300); latent rewards and
the Likert baseline are Girrbach et al. 2025 (arXiv 2509.24678).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.hf_argparser import HfArg
from trl import TrlParser

from latent_rewards import HFJudge
from latent_rewards.best_of_n.config import Manifest
from latent_rewards.data.facts import facts
from latent_rewards.evaluation.kept import KeepingJudge
from latent_rewards.files.outputs import write_json
from latent_rewards.files.runs import PACKAGES, as_options, command, commit, machine, versions
from latent_rewards.files.types import JsonObject
from recipes.head_to_head_policy import DEVICE, messages, sample, train
from recipes.head_to_head_report import draw, write_table
from recipes.head_to_head_rewards import make_reward
from recipes.head_to_head_start import teach

Judges = tuple[HFJudge, KeepingJudge]
MAY_CHANGE = ("only", "output_dir", "jobs", "seeds", "rewards", "timed", "threads", "baseline")  # where runs are kept
_RANK = 0  # of this process among those that make runs at once


@dataclass
class HeadToHead:
    """What is compared; on the command line mappings are quoted YAML."""

    judge: str = HfArg(default="embedded", help="Judge model, or a mapping of `HFJudge` options with the key `model`.")
    rewards: dict[str, Any] = field(default_factory=dict)  # name -> reward and its options; "gold" is the ceiling
    only: str = HfArg(default="", help="Names of rewards, with commas; empty for all.")
    seeds: str = HfArg(default="0,1,2", help="Seeds, with commas.")
    output_dir: str = HfArg(default="runs/head-to-head", help="Folder of all that is written.")
    policy: str = HfArg(default="embedded", help="Model that is taught and trained.")
    shares: dict[str, Any] = field(default_factory=lambda: {"right": 0.5, "fact": 0.2, "prose": 0.15, "hedge": 0.15})
    known: int = HfArg(default=1, help="Supervised epochs on right answers.")
    mixed: int = HfArg(default=8, help="Supervised epochs on answers drawn by the shares.")
    taught_lr: float = HfArg(default=1e-3, help="Learning rate of the supervised steps.")
    steps: int = HfArg(default=40, help="Steps of GRPO.")
    prompts: int = HfArg(default=2, help="Questions in a step.")
    answers: int = HfArg(default=8, help="Answers to each.")
    answer_tokens: int = HfArg(default=28, help="Longest answer.")
    lr: float = HfArg(default=5e-4, help="Learning rate of GRPO.")
    look_every: int = HfArg(default=10, help="Steps between looks at the held-out questions.")
    held_out_every: int = HfArg(default=1, help="Every so many-th of the held-out questions.")
    held_out_answers: int = HfArg(default=2, help="Answers to each held-out question.")
    timed: int = HfArg(default=2, help="Steps' worth of answers on which the judge's seconds are measured; 0 for none.")
    threads: int = HfArg(default=0, help="CPU threads of torch; 0 for its own choice.")
    jobs: int = HfArg(default=1, help="Runs made at once.")
    baseline: str = HfArg(default="likert", help="The reward that the table compares the others to.")


def measure_seconds(name: str, judge: HFJudge, start: Path, args: HeadToHead) -> float:
    """Seconds of the judge in a step, with nothing kept, on answers that the start gives: the same for all rewards.

    On a CPU they are CPU seconds; on an accelerator, which has to be free of others, they are those of the clock.
    The first step's worth is read once more before, so that nothing is loaded or checked while the clock runs.
    """
    reward, clock = make_reward(args.rewards[name], judge, 0), time.process_time
    if DEVICE != "cpu":
        clock = time.perf_counter
    if reward is None:
        return 0.0
    rows = facts("train")[:: len(facts("train")) // (args.prompts * args.timed + 1)][1:][: args.prompts * args.timed]
    policy = AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16).to(DEVICE)
    answers = sample(policy, AutoTokenizer.from_pretrained(start), rows, args.answers, 0, args.answer_tokens)
    spent = []
    for first in [0, *range(0, len(rows), args.prompts)]:
        some = range(first, first + args.prompts)
        prompts = [messages(rows[i]) for i in some for _ in range(args.answers)]
        completions = [[{"role": "assistant", "content": t}] for i in some for t in answers[i]]
        judge.forget()
        began = clock()
        reward.score(prompts, completions)
        spent.append(clock() - began)
    return float(np.mean(spent[1:]))


def main(args: HeadToHead) -> None:
    out = Path(args.output_dir)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    Manifest(out).agree({k: v for k, v in _settings(args).items() if k not in MAY_CHANGE})
    if args.threads:
        torch.set_num_threads(args.threads)
    names = [n for n in args.only.split(",") if n] or list(args.rewards)
    unknown = set(names) - set(args.rewards)
    if unknown:
        raise ValueError(f"only={sorted(unknown)}: known are {sorted(args.rewards)}")
    report(out, args)
    todo = [(n, int(s)) for s in args.seeds.split(",") for n in names if not _is_made(out, n, int(s), args)]
    for _ in make_runs(todo, args):
        report(out, args)
    costs = json.loads((out / "seconds.json").read_text()) if (out / "seconds.json").is_file() else {}
    for name in names if args.timed else []:
        if name not in costs:
            judge = open_judges(_judge(args), out)[0]
            costs[name] = measure_seconds(name, judge, teach(out / "start", args), args)
            write_json(out / "seconds.json", costs)
    report(out, args)


def make_runs(todo: Sequence[tuple[str, int]], args: HeadToHead) -> Iterator[None]:
    """One run after the other, or `jobs` at once; a run that fails stops none of those beside it.

    Raises:
        RuntimeError: runs failed, of several at once; names them.
    """
    out = Path(args.output_dir)
    if not todo:
        return
    if args.jobs == 1:
        start = teach(out / "start", args)
        for name, seed in todo:
            make_run(name, seed, start, args)
            yield
        return
    context, failed = get_context("spawn"), {}
    with ProcessPoolExecutor(args.jobs, context, _begin, (context.Value("i", 0), args)) as pool:
        for _ in range(args.jobs if any(args.rewards[name]["reward"] != "gold" for name, _ in todo) else 0):
            pool.submit(_open, args)  # while the start is taught
        start = teach(out / "start", args)
        runs = {pool.submit(make_run, name, seed, start, args): f"{name}, seed {seed}" for name, seed in todo}
        for done in as_completed(runs):
            if error := done.exception():
                failed[runs[done]] = error
                print(f"{runs[done]} failed: {error!r}", flush=True)
            yield
    if failed:
        raise RuntimeError(f"failed: {'; '.join(failed)}") from next(iter(failed.values()))


def _begin(ranks: Synchronized[int], args: HeadToHead) -> None:
    """A process that makes runs: it takes a rank, and its part of the threads."""
    global _RANK
    with ranks.get_lock():
        _RANK = ranks.value
        ranks.value += 1
    torch.set_num_threads(args.threads or max(1, torch.get_num_threads() // args.jobs))


def _open(args: HeadToHead) -> None:
    """Load the judge, before there is a start; what goes wrong is told by the run that needs it."""
    open_judges(_judge(args), Path(args.output_dir))


def make_run(name: str, seed: int, start: Path, args: HeadToHead) -> None:
    """Train against one reward, and write the run's file."""
    print(f"{name}, seed {seed}", flush=True)
    out = Path(args.output_dir)
    gold = args.rewards[name]["reward"] == "gold"
    reward = None if gold else make_reward(args.rewards[name], open_judges(_judge(args), out)[1], seed)
    began = time.perf_counter()
    found = train(reward, start, args, seed, f"{name}, seed {seed}")
    wall = time.perf_counter() - began
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else machine()
    read = {} if gold else {"judge_revision": open_judges(_judge(args), out)[0].revision}
    told = {
        "reward": name,
        "spec": args.rewards[name],
        "seed": seed,
        "commit": commit(),
        "device": device,
        "wall": wall,
        **read,
    }
    write_json(run_path(out, name, seed), told | found)


def _is_made(out: Path, name: str, seed: int, args: HeadToHead) -> bool:
    path = run_path(out, name, seed)
    if not path.is_file():
        return False
    spec = json.loads(path.read_text()).get("spec", args.rewards[name])
    if spec != args.rewards[name]:
        raise ValueError(f"{path} is of {spec}, not of {args.rewards[name]}: give the reward another name or remove it")
    return True


def run_path(out: Path, name: str, seed: int) -> Path:
    """Where a run is written."""
    return out / "runs" / f"{name}-{seed}.json"


@functools.lru_cache(maxsize=1)
def open_judges(options: str, out: Path) -> Judges:
    """The judge of this process, loaded, and the same behind what has been read already."""
    plain = HFJudge(**json.loads(options))
    return plain, KeepingJudge(plain, out / "kept", _RANK)


def report(out: Path, args: HeadToHead) -> None:
    """Write results, table and picture from all runs that are there."""
    runs = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    if not runs:
        return
    costs = json.loads((out / "seconds.json").read_text()) if (out / "seconds.json").is_file() else {}
    write_json(out / "results.json", {
        "command": command("recipes.head_to_head"),
        "settings": {k: v for k, v in _settings(args).items() if k not in ("only", "output_dir", "jobs")},
        "versions": versions(*PACKAGES), "seconds": costs, "runs": runs,
    })  # fmt: skip
    ordered = [name for name in args.rewards if any(r["reward"] == name for r in runs)]
    write_table(out / "table.md", ordered, runs, costs, steps=args.steps, baseline=args.baseline)
    kinds = {name: str(args.rewards[name]["reward"]) for name in ordered}
    draw(out / "curves.png", kinds, runs, costs)


def _settings(args: HeadToHead) -> JsonObject:
    judge = as_options(args.judge, "model")
    return asdict(args) | {"judge": judge | {"model": Path(str(judge["model"])).name}}


def _judge(args: HeadToHead) -> str:
    return json.dumps(as_options(args.judge, "model"))


def run(argv: Sequence[str] | None = None) -> None:
    """The recipe with a command line."""
    (args,) = TrlParser(HeadToHead).parse_args_and_config(argv)
    main(args)


if __name__ == "__main__":
    run()
