"""Ten rows through the real packages of other RL stacks, each in an environment of its own.

    python -m benchmarks.stacks --folder /tmp/stacks          # makes the environments (some GB, 20 minutes), then runs
    python -m benchmarks.stacks --python verl=/opt/verl/bin/python     # one that is there

In each, what pip has installed is listed before and after `pip install .`: nothing of it may change. Then
`tests/serving/test_stacks.py` starts a judge server and runs `tests/stack_calls/` in each environment, and
`tests/export/test_loaders.py` loads an export there. Writes `benchmarks/results/stacks.json` and `stacks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latent_rewards.files.markdown import table
from latent_rewards.files.runs import commit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TORCH = "torch==2.13.0"
# Stack -> variable of its interpreter for the tests, distribution, and what pip installs, a line each; torch first,
# since the stacks' own pins would bring other builds of it. What needs a card (vLLM, DeepSpeed) is left out, which
# OpenRLHF would pull in.
STACKS: dict[str, tuple[str, str, list[list[str]]]] = {
    "verl": ("VERL_PYTHON", "verl", [[TORCH, "verl==0.9.1"]]),
    "ms_swift": ("MS_SWIFT_PYTHON", "ms_swift", [[TORCH, "ms-swift==4.6.0"]]),
    "verifiers": ("VERIFIERS_PYTHON", "verifiers", [["verifiers==0.4.0"]]),
    "openrlhf": ("OPENRLHF_PYTHON", "openrlhf", [
        [TORCH, "transformers==5.15.0", "ray", "accelerate", "datasets", "peft", "aiohttp", "tqdm", "pylatexenc",
         "sympy", "einops"],
        ["--no-deps", "openrlhf==0.11.2"],
    ]),
    "trl": ("TRL_PYTHON", "trl", [[TORCH, "transformers==5.24.0", "trl==1.16.0", "peft", "gguf"]]),
    "trl_oldest": ("TRL_OLDEST_PYTHON", "trl", [[TORCH, "transformers==4.57.6", "trl==1.0.0", "peft", "gguf"]]),
}  # fmt: skip


def make(stack: str, folder: Path) -> str:
    """The interpreter of a new environment with the stack; one that was broken off is finished."""
    python = str((folder / stack / "bin" / "python").absolute())
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / stack)], check=True)
    first = [[TORCH]] if any(TORCH in line for line in STACKS[stack][2]) else []
    for line in [*first, *STACKS[stack][2]]:
        subprocess.run([*installer(python), "--quiet", *line], check=True)
    return python


def installer(python: str) -> list[str]:
    """The command that installs into an environment: uv where it is there, which is much quicker, else pip."""
    uv = shutil.which("uv")
    return [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install", "--no-compile"]


def installed(python: str) -> dict[str, str]:
    """Version by distribution, but ours."""
    command = [python, "-m", "pip", "list", "--format", "json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {p["name"].lower().replace("-", "_"): p["version"] for p in found if p["name"] != "latent-rewards"}


def install(python: str, kept: Path | None = None) -> dict[str, Any]:
    """What `pip install .` adds and changes; `kept` holds what that was the first time, if a run was broken off."""
    before = installed(python)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", str(ROOT)], check=True)
    if kept is not None and kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    after = installed(python)
    found = {
        "changed": {name: [version, after.get(name)] for name, version in before.items() if after.get(name) != version},
        "added": sorted(set(after) - set(before)),
        "versions": {name: after[name] for name in ("torch", "transformers") if name in after},
    }
    if kept is not None:
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def run(pythons: dict[str, str]) -> dict[str, dict[str, float]]:
    """Largest difference to the judge in process, by stack and entry point."""
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "differences.jsonl"
        variables = {STACKS[stack][0]: python for stack, python in pythons.items()}
        env = os.environ | variables | {"LATENT_REWARDS_STACKS_OUT": str(out)}
        tests = ["tests/serving/test_stacks.py", "tests/export/test_loaders.py"]
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "slow", *tests], cwd=ROOT, env=env, check=True)
        found: dict[str, dict[str, float]] = {}
        for line in out.read_text(encoding="utf-8").splitlines():
            stack, entry, difference = json.loads(line)
            found.setdefault(stack, {})[entry] = difference
    return found


def note_difference(stack: str, entry: str, difference: float) -> None:
    """For the tests: keep what was measured, where the benchmark runs them."""
    if out := os.environ.get("LATENT_REWARDS_STACKS_OUT"):
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps([stack, entry, difference]) + "\n")


def written(result: dict[str, Any]) -> str:
    """The table."""
    rows = [
        [
            stack,
            found["version"],
            entry,
            f"{difference:.1e}",
            str(len(found["changed"])),
            ", ".join(found["added"]) or "-",
        ]
        for stack, found in result["stacks"].items()
        for entry, difference in found["differences"].items()
    ]
    head = ["stack", "version", "entry point", "largest difference", "packages changed", "packages added by ours"]
    said = (
        f"`python -m benchmarks.stacks`; commit {result['commit']}, {result['date']}. Ten rows with a reference each, "
        "scored through the stack's own entry point by a judge server, or by an exported folder that the stack loads, "
        "against the judge in process (float32)."
    )
    return "\n".join(["# The real packages", "", said, "", *table(head, rows), ""])


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, help="Where environments are made; without it those of --python alone run.")
    p.add_argument("--only", nargs="*", choices=STACKS, default=STACKS, help="Of those that --folder makes.")
    p.add_argument("--python", action="append", default=[], metavar="STACK=PATH", help="An environment that is there.")
    args = p.parse_args()
    pythons = dict(given.split("=", 1) for given in args.python)
    facts = {stack: install(python) for stack, python in pythons.items()}
    for stack in args.only if args.folder is not None else ():
        if stack not in pythons:
            pythons[stack] = make(stack, args.folder)
            facts[stack] = install(pythons[stack], args.folder / f"{stack}.json")
    for stack, python in pythons.items():
        facts[stack]["version"] = installed(python)[STACKS[stack][1]]
    for stack, differences in run(pythons).items():
        facts[stack]["differences"] = differences
    result = {"commit": commit(), "date": datetime.now(UTC).date().isoformat(), "stacks": facts}
    (RESULTS / "stacks.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "stacks.md").write_text(written(result), encoding="utf-8")
    print(written(result))


if __name__ == "__main__":
    main()
