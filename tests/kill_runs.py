"""Starts a Best-of-N run again and again, kills it with SIGKILL at random moments, and lets it end at last.

    python tests/kill_runs.py MODE KILLS CONFIG SEED

MODE: `one` process, `two` processes side by side, `accelerate` launch of two, or `ray` with two actors. CONFIG: JSON of
`BestOfNConfig`. In the modes `one` and `two` the processes are forks of this one, which has imported all and run
nothing, so that a start costs next to nothing. Prints how many kills hit a process at work, and the last exit codes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401  before the forks

from latent_rewards.best_of_n import BestOfNConfig, Selection, best_of_n
from latent_rewards.judge.hf import HFJudge  # noqa: F401  likewise

ROOT = Path(__file__).parent.parent


def config_of(raw: dict[str, Any]) -> BestOfNConfig:
    return BestOfNConfig(**{**raw, "selection": Selection(**raw["selection"])})


def fork(raw: dict[str, Any], rank: int) -> psutil.Process:
    """A process that takes part in the run."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["RANK"] = str(rank)
            sys.stderr = (Path(raw["output"]).parent / "stderr.txt").open("a")
            best_of_n(config_of(raw))
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    return psutil.Process(child)


def start(mode: str, raw: dict[str, Any], config: str) -> list[psutil.Process]:
    if mode in ("one", "two"):
        return [fork(raw, rank) for rank in range(1 if mode == "one" else 2)]
    own = [sys.executable, __file__, "run", "0", config, "0"]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command = [*launch, *own[1:]] if mode == "accelerate" else own
    popen = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [psutil.Process(popen.pid)]


def running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def family(processes: list[psutil.Process]) -> list[psutil.Process]:
    """All living processes of the run."""
    out = []
    for p in processes:
        try:
            out += [p, *p.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return [p for p in out if running(p)]


def end(processes: list[psutil.Process]) -> list[int | None]:
    """Wait for what is left; exit codes of the processes that were started."""
    codes = []
    for p in processes:
        try:
            codes.append(p.wait(timeout=300))
        except psutil.NoSuchProcess:
            codes.append(None)
    return codes


def shards(raw: dict[str, Any]) -> int:
    return len(list((Path(raw["output"]) / "shards").glob("[0-9]*.jsonl")))


def one_kill(mode: str, raw: dict[str, Any], config: str, rng: random.Random) -> bool:
    """Start, wait for a random moment (at once, loading, some shards later, finishing), kill one or all processes."""
    started = start(mode, raw, config)
    target = shards(raw) + rng.choice([0, 0, 1, 2])
    deadline = time.monotonic() + 240
    while shards(raw) < target and any(running(p) for p in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.random() * rng.choice([0.003, 0.03, 0.3]))
    alive = family(started)
    victims = (
        alive if rng.random() < 0.5 else alive[-1:] if mode in ("one", "two") else rng.sample(alive, 1) if alive else []
    )
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if mode == "ray":  # actors are children of the driver's raylet; what survives a partial kill may go on and end
        for p in family(started):
            if victims and len(victims) == len(alive):
                p.kill()
    end(started)
    return bool(victims)


def main() -> None:
    mode, kills, config, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    raw = json.loads(Path(config).read_text(encoding="utf-8"))
    if mode == "run":
        best_of_n(config_of(raw))
        return
    rng = random.Random(seed)
    hit = sum(one_kill(mode, raw, config, rng) for _ in range(kills))
    codes = end(start(mode, raw, config))
    print(json.dumps({"hit": hit, "codes": codes}))


if __name__ == "__main__":
    main()
