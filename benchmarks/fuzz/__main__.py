"""Run fuzz targets for many cases and keep count.

    python -m benchmarks.fuzz --cases 20000 --seed 1                        # each target, seeded random bytes
    python -m benchmarks.fuzz --engine atheris --target tokens --cases 5000 # coverage-guided, needs the extra `fuzz`
    python -m benchmarks.fuzz --report benchmarks/results/fuzz.json         # sum up what was counted

Every run appends a line to `--log`: target, engine, seed, cases, seconds, commit, failures. A failure is an exception
that the target does not expect, a broken invariant, or a case that takes longer than `--hang` seconds; its bytes are
printed.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fuzz import files, words
from benchmarks.fuzz.draw import Draw
from latent_rewards.files.runs import commit

TARGETS: dict[str, Callable[[Draw], int | None]] = {**words.TARGETS, **files.TARGETS}
_LONGEST = 600


def main() -> None:
    """Read the arguments, run, append to the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="all", help=f"comma-separated, of {', '.join(TARGETS)}, bodies; or all")
    parser.add_argument("--engine", default="random", choices=("random", "atheris"))
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--seconds", type=float, default=600, help="most seconds for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang", type=float, default=10)
    parser.add_argument("--log", type=Path, default=Path("runs/fuzz.jsonl"))
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    if args.report:
        report(args.log, args.report)
        return
    names = list(TARGETS) if args.target == "all" else args.target.split(",")
    failed = [run(name, args)["failures"] for name in names]
    sys.exit(any(failed))


def run(name: str, args: Any) -> dict[str, Any]:
    """One target; its line in the log."""
    started = time.process_time(), time.monotonic()
    engine = _atheris if args.engine == "atheris" else _random
    cases, failures = engine(find(name), args)
    line = {
        "target": name, "engine": args.engine, "seed": args.seed, "cases": cases, "failures": failures,
        "cpu_seconds": round(time.process_time() - started[0], 1), "wall": round(time.monotonic() - started[1], 1),
        "commit": commit(), "command": shlex.join(["python", "-m", "benchmarks.fuzz", *sys.argv[1:]]),
    }  # fmt: skip
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    return line


def find(name: str) -> Callable[[Draw], int | None]:
    """A target by name; the server's needs its extra."""
    if name == "bodies":
        from benchmarks.fuzz.bodies import bodies

        return bodies
    return TARGETS[name]


def _random(target: Callable[[Draw], int | None], args: Any) -> tuple[int, int]:
    """Seeded random bytes of random length until the cases or the seconds are used up."""
    rng, cases, failures, end = random.Random(args.seed), 0, 0, time.monotonic() + args.seconds
    signal.signal(signal.SIGALRM, _hangs)
    while cases < args.cases and time.monotonic() < end and failures < 20:
        data = rng.randbytes(rng.randint(0, _LONGEST) if rng.random() < 0.5 else rng.randint(0, 60))
        signal.setitimer(signal.ITIMER_REAL, args.hang)
        try:
            cases += target(Draw(data)) or 1
        except Exception:
            cases, failures = cases + 1, failures + 1
            print(f"FAILED {target.__name__} {data.hex()}\n{traceback.format_exc(limit=-6)}", flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return cases, failures


def _hangs(*_: Any) -> None:
    raise TimeoutError("the case takes too long")


def _atheris(target: Callable[[Draw], int | None], args: Any) -> tuple[int, int]:
    """Coverage-guided, in a child, since libFuzzer ends its process; a crash there leaves its input in `runs`."""
    corpus = args.log.parent / "corpus" / target.__name__
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.fuzz.guided", target.__name__, f"-runs={args.cases}",
        f"-seed={args.seed + 1}", f"-max_total_time={int(args.seconds)}", f"-timeout={int(args.hang)}",
        f"-max_len={_LONGEST}", "-rss_limit_mb=0", f"-artifact_prefix={args.log.parent}/{target.__name__}-",
        str(corpus),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    told = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
    if done.returncode or not told:
        print(done.stdout[-3000:], done.stderr[-3000:])
    return (int(told[-1].split()[1]) if told else 0), int(done.returncode != 0 or not told)


def report(log: Path, out: Path) -> None:
    """Sum the log by target and engine."""
    lines = [json.loads(x) for x in log.read_text().splitlines()]
    table: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = table.setdefault(f"{line['target']}/{line['engine']}", {"cases": 0, "failures": 0})
        for key in row:
            row[key] += line[key]
    total = {k: sum(r[k] for r in table.values()) for k in ("cases", "failures")}
    commits = sorted({line["commit"] for line in lines})
    commands = list(dict.fromkeys(line["command"] for line in lines))
    out.write_text(
        json.dumps({"total": total, "targets": table, "commits": commits, "commands": commands}, indent=1) + "\n"
    )
    print(json.dumps(total))


if __name__ == "__main__":
    main()
