"""How good is the pick: Best-of-n by latent rewards, by Likert ratings, by length, against gold.

Source: Girrbach et al. 2025 (arXiv 2509.24678) for the scores; exact curves as in
`latent_rewards.best_of_n.choice_of_n`.

    python -m recipes.best_of_n --config configs/best_of_n/cpu.yaml
    accelerate launch -m recipes.best_of_n --config configs/best_of_n/qwen3_8b.yaml

The policy writes N completions of reasoning-gym tasks, which their verifiers mark; lists of `$LATENT_REWARDS_DATA` come
with completions and gold. All are scored by `latent-rewards best-of-n`, so a run that was stopped goes on where it was.
Result in `output`: selection.json, selection.md, selection.png. Look at "longest" first: a score has to beat it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg
from trl import TrlParser

from latent_rewards.best_of_n import BestOfNConfig, Selection, best_of_n
from latent_rewards.best_of_n.config import RewardSpec
from latent_rewards.evaluation import benchmarks
from latent_rewards.files.outputs import to_json
from latent_rewards.files.types import JsonObject, Row
from latent_rewards.judge.prompts import to_text
from recipes import best_of_n_table

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Arguments:
    """Knobs of the measurement."""

    judge: str = HfArg(default="embedded", help="Hub id or folder of the judge, or 'embedded'.")
    judge_kwargs: dict[str, Any] | str | None = HfArg(default=None, help="Of HFJudge, as JSON.")
    rewards: list[str] = HfArg(default_factory=lambda: ["weighted", "verifier"], help="Latent rewards to compare.")
    samples: int = HfArg(default=10, help="Ratings behind the Likert mean; 0 leaves Likert out.")
    policy: str = HfArg(default="embedded", help="Model that writes the completions of tasks.")
    backend: str = HfArg(default="hf", help="hf, vllm or server.")
    n: int = HfArg(default=8, help="Completions per task.")
    max_new_tokens: int = HfArg(default=60, help="Longest completion.")
    temperature: float = HfArg(default=0.8, help="Of the policy.")
    tasks: list[str] = HfArg(default_factory=list, help="reasoning-gym tasks, 'name' or 'name {options}'.")
    per_task: int = HfArg(default=25, help="Prompts of each task.")
    lists: list[str] = HfArg(default_factory=list, help="Benchmarks of lists, 'name' or 'name#limit'.")
    max_chars: int | None = HfArg(default=None, help="Leave out lists with longer texts than this.")
    batch_size: int = HfArg(default=64, help="Completions per call of the judge.")
    seed: int = HfArg(default=0, help="Of tasks and sampling.")
    output: str = HfArg(default="runs/best-of-n", help="Folder of runs and results.")
    publish: str | None = HfArg(default=None, help="Path without suffix for a copy of the results.")


def main() -> None:
    (args,) = TrlParser((Arguments,)).parse_args_and_config()
    kwargs = args.judge_kwargs or {}
    judge = {"model": args.judge, **(json.loads(kwargs) if isinstance(kwargs, str) else kwargs)}
    folder, sets, waiting = Path(args.output), {}, False
    for name, rows, generates in inputs(args):
        path = folder / name / "input.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("".join(to_json(r) + "\n" for r in rows), encoding="utf-8")
        policy = {"backend": args.backend, "model": args.policy}
        config = BestOfNConfig(
            input=str(path), output=str(folder / name / "run"), rewards=rewards(args), judge=judge,
            generator=policy if generates else None, sampling=sampling(args) if generates else {},
            selection=Selection(method="none", combine="z"), batch_size=args.batch_size,
            shard_size=4 * args.batch_size,
        )  # fmt: skip
        done = best_of_n(config)
        waiting |= done is None
        if done is not None:
            sets[name] = [score_tasks(r) if generates else r for r in read(folder / name / "run" / "scored.jsonl")]
    if waiting:
        return  # another process of this launch ends last and makes the table
    columns = list(BestOfNConfig("", "", rewards=rewards(args)).reward_specs())
    facts = {"judge": args.judge, "policy": args.policy, "n": args.n, "samples": args.samples}
    for path in best_of_n_table.write(sets, columns, facts, folder, args.publish):
        print(path)


def rewards(args: Arguments) -> list[RewardSpec]:
    """Specs of the latent rewards and of Likert ratings, asked once and averaged."""
    out: list[RewardSpec] = list(args.rewards)
    if args.samples:
        for column, statistic in (("likert10 once", "one"), (f"likert10 mean of {args.samples}", "mean")):
            options = {"n_samples": args.samples, "statistic": statistic, "column": column}
            out.append(("likert10:bare", options))
    return out


def sampling(args: Arguments) -> JsonObject:
    return {"n": args.n, "temperature": args.temperature, "max_new_tokens": args.max_new_tokens, "seed": args.seed}


def inputs(args: Arguments) -> Iterator[tuple[str, list[Row], bool]]:
    """Name, rows, and whether completions are to be generated."""
    if args.tasks:
        yield "reasoning_gym", [row for task in args.tasks for row in task_rows(task, args)], True
    for spec in args.lists:
        found = benchmarks.load(spec if "/" in spec else f"listwise/{spec}", max_chars=args.max_chars)
        rows = [
            {"id": item.id, "prompt": item.prompt, "completions": list(item.responses), "gold": list(item.gold)}
            for item in found.items
        ]
        yield Path(spec.partition("#")[0]).stem, rows, False


def task_rows(task: str, args: Arguments) -> list[Row]:
    """Prompts of a reasoning-gym task, with the entry that its verifier needs."""
    import reasoning_gym
    import yaml

    name, _, options = task.partition(" ")
    made = reasoning_gym.create_dataset(name, size=args.per_task, seed=args.seed, **(yaml.safe_load(options or "{}")))
    return [
        {"id": f"{name}-{i}", "prompt": entry["question"], "task": name, "entry": json.dumps(entry, default=str)}
        for i, entry in enumerate(made)
    ]


def score_tasks(row: Row) -> Row:
    """Gold of every completion: 1 where the task's verifier fully accepts the text, or the last number in it."""
    import reasoning_gym

    verify, entry = reasoning_gym.get_score_answer_fn(row["task"]), json.loads(row["entry"])
    gold = []
    for text in row["completions"]:
        found = _NUMBER.findall(to_text(text))
        gold.append(float(max(verify(a, entry) for a in [to_text(text).strip(), *found[-1:]]) > 0.99))
    return {**row, "gold": gold}


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
