"""What a rubric list costs: task and reply once and each criterion its own tokens, beside a read for each criterion.

    python -m benchmarks.rubric_cost --repeats 3 [--dtype bfloat16] [--vllm <environment with vllm>/bin/python]

Writes benchmarks/results/rubric-cost.{json,md}, of another dtype than float32 rubric-cost-<dtype>. vLLM (CPU, prefix
cache on and empty at the start of each list) answers the same texts with one token each, in the same run, in an
environment of its own.

One reply of 400 tokens after a prompt of 200, lists of 1 to 40 criteria of about 12 words, the embedded judge, one
thread, CPU seconds of this process. The floor: unique tokens (nodes of the prefix tree of all texts) at
the rate of a plain forward of one such text; a forward of these tokens cannot go on in less on this machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import Worker
from latent_rewards import HFJudge, RubricReward
from latent_rewards.engine.loading import resolve_model
from latent_rewards.engine.padded import read_states
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import commit

RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 5, 10, 20, 40)
WORDS = (
    "the reply names a number states why it holds gives one example keeps to the point avoids jargon says what remains "
    "open mentions the source and its date compares two ways warns of a danger asks nothing back"
).split()


def text(rng: random.Random, judge: HFJudge, tokens: int) -> str:
    """Words that are about so many tokens."""
    out: list[str] = []
    while len(judge.encoder.tokenizer(" ".join(out))["input_ids"]) < tokens:
        out.append(rng.choice(WORDS))
    return " ".join(out)


def unique(sequences: Sequence[Sequence[int]]) -> int:
    """Nodes of the prefix tree."""
    return len({tuple(ids[: i + 1]) for ids in sequences for i in range(len(ids))})


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median CPU seconds."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def measure(judge: HFJudge, prompt: str, reply: str, criteria: list[str], rate: float, repeats: int) -> dict[str, Any]:
    """One length of list."""
    forward = judge.forward

    def fresh() -> None:
        judge.forget()
        forward.cache.clear()

    def packed() -> None:
        fresh()
        RubricReward(judge, criteria=criteria).score([prompt], [reply])

    def apart() -> None:
        for criterion in criteria:
            fresh()
            RubricReward(judge, criteria=[criterion]).score([prompt], [reply])

    before = forward.tokens_run
    packed()
    tokens = forward.tokens_run - before
    reward = RubricReward(judge, criteria=criteria)
    rows = reward.requests(reward.rows([prompt], [reply], {}))[0].rows
    encoded = [e.ids for e in judge.encoder.encode(reward.prompt.render_all(rows))]
    apart_tokens = sum(map(len, encoded))
    took, alone = seconds(packed, repeats), seconds(apart, max(1, repeats // 2))
    floor = unique(encoded) / rate
    return {
        "criteria": len(criteria), "unique_tokens": unique(encoded), "tokens_run": tokens, "tokens_apart": apart_tokens,
        "seconds": took, "seconds_apart": alone, "floor_seconds": floor, "over_floor": took / floor,
        "times_less": alone / took,
    }  # fmt: skip


def plain_rate(judge: HFJudge, prompt: str, reply: str, criterion: str, repeats: int) -> float:
    """Tokens a CPU second of a plain forward of one text, without sharing."""
    reward = RubricReward(judge, criteria=[criterion])
    rows = reward.requests(reward.rows([prompt], [reply], {}))[0].rows
    (encoded,) = judge.encoder.encode(reward.prompt.render_all(rows))
    ids, at = [encoded.ids], [[len(encoded.ids) - 1]]

    def work() -> None:
        with torch.no_grad():
            read_states(judge.blocks, ids, at, layers=(), final=True, batch_tokens=1)

    work()
    return len(encoded.ids) / seconds(work, repeats)


def beside(
    judge: HFJudge, python: str, lists: Sequence[Sequence[str]], pair: tuple[str, str], repeats: int
) -> list[float]:
    """Median CPU seconds of vLLM for each list."""
    ids, first = {}, [judge.encoder.tokenizer(t)["input_ids"][0] for t in ("Yes", "No")]
    for criteria in lists:
        reward = RubricReward(judge, criteria=criteria)
        rows = reward.requests(reward.rows([pair[0]], [pair[1]], {}))[0].rows
        encoded = [e.ids for e in judge.encoder.encode(reward.prompt.render_all(rows))]
        ids[str(len(criteria))] = {"ids": encoded, "pairs": list(criteria)}
    dtype = str(judge.blocks.model.dtype).removeprefix("torch.")
    work = {"model": resolve_model("embedded"), "dtype": dtype, "first_ids": first, "first_values": [1, 0], "work": ids}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.json"
        path.write_text(json.dumps(work), encoding="utf-8")
        worker = Worker("vllm", python, path, 1, 1200)
        try:
            return [
                statistics.median(worker.ask(name, list(range(int(name))))["cpu"] for _ in range(repeats))
                for name in ids
            ]
        finally:
            worker.close()


def written(result: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for r in result["rows"]:
        counts = [str(r[key]) for key in ("criteria", "unique_tokens", "tokens_run", "tokens_apart")]
        times = [f"{r[key]:.2f}" for key in ("seconds", "floor_seconds", "over_floor", "seconds_apart")]
        vllm = [f"{r['vllm_seconds']:.2f}"] if "vllm_seconds" in r else []
        rows.append([*counts, *times, f"{r['times_less']:.1f}", *vllm])
    head = ["criteria", "unique tokens", "tokens run", "tokens of separate reads", "CPU s", "floor, CPU s"]
    head += ["times the floor", "separate reads, CPU s", "times less"]
    with_vllm = "vllm_seconds" in result["rows"][0]
    head += ["vLLM, CPU s"] if with_vllm else []
    vllm = (
        f"vLLM {result.get('vllm')} with its prefix cache, same texts"
        if with_vllm
        else "vLLM was not measured beside it"
    )
    said = (
        f"`python -m benchmarks.rubric_cost --repeats {result['repeats']} --dtype {result['dtype']}"
        f"{' --vllm ...' if with_vllm else ''}`; commit {result['commit']}, {result['cpu']}, one thread, "
        f"{result['dtype']}, SmolLM2-135M. A prompt of {result['prompt_tokens']} tokens, a reply of "
        f"{result['reply_tokens']}; medians. The floor is the unique tokens at {result['rate']:.0f} tokens a CPU "
        f"second, the rate of a plain forward of one such text in the same run. {vllm}."
    )
    return "\n".join(["# The cost of a rubric list", "", said, "", *table(head, rows), ""])


def vllm_version(python: str) -> str | None:
    """As that environment has it."""
    if not python:
        return None
    asked = "from importlib.metadata import version; import vllm; print(vllm.__version__)"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.split()[-1]


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", default="float32")
    p.add_argument("--vllm", default="", help="Python of an environment with vLLM")
    args = p.parse_args()
    torch.set_num_threads(1)
    judge, rng = HFJudge("embedded", dtype=args.dtype, device="cpu"), random.Random(0)
    prompt, reply = text(rng, judge, 200), text(rng, judge, 400)
    criteria = [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(max(COUNTS))]
    judge.forward  # noqa: B018  load and check before anything is timed
    rate = plain_rate(judge, prompt, reply, criteria[0], 3 * args.repeats)
    rows = [measure(judge, prompt, reply, criteria[:n], rate, args.repeats) for n in COUNTS]
    if args.vllm:
        lists = [criteria[:n] for n in COUNTS]
        for row, taken in zip(rows, beside(judge, args.vllm, lists, (prompt, reply), args.repeats), strict=True):
            row["vllm_seconds"] = taken
    rate_after = plain_rate(judge, prompt, reply, criteria[0], 3 * args.repeats)
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    size = [len(judge.encoder.tokenizer(t)["input_ids"]) for t in (prompt, reply)]
    result = {
        "commit": commit(), "cpu": cpu, "repeats": args.repeats, "prompt_tokens": size[0], "reply_tokens": size[1],
        "dtype": args.dtype, "vllm": vllm_version(args.vllm), "rate": rate, "rate_after": rate_after, "rows": rows,
    }  # fmt: skip
    stem = "rubric-cost" if args.dtype == "float32" else f"rubric-cost-{args.dtype}"
    (RESULTS / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{stem}.md").write_text(written(result), encoding="utf-8")
    print(written(result))


if __name__ == "__main__":
    main()
