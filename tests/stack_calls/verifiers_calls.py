"""Rewards of rows as a task of verifiers asks judges for them: python verifiers_calls.py < rows.json > scores.json."""

import asyncio
import json
import sys
import tempfile
import types
from pathlib import Path

import verifiers.v1 as vf
from verifiers.v1.configs.judge import check_judges, resolve_judges
from verifiers.v1.utils.loaders import load_judge

ADAPTER = "latent_rewards.serving.adapters.verifiers"


class Data(vf.TaskData):
    """A task with an answer."""

    answer: str = ""


def main() -> None:
    rows = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "latent_judge.py").write_text(f"from {ADAPTER} import *\nfrom {ADAPTER} import __all__\n")
        sys.path.insert(0, folder)
        (config,) = resolve_judges([{"id": "latent_judge", "name": "quality"}])
        check_judges([config])
        judge = load_judge(config)

        async def score() -> list[float]:
            return [
                await judge.score(
                    Data(prompt=r["prompt"], answer=r["reference"]), types.SimpleNamespace(last_reply=r["completion"])
                )
                for r in rows
            ]

        print(json.dumps({"load_judge": asyncio.run(score())}))


if __name__ == "__main__":
    main()
