"""What runs without torch, and how fast the front doors open."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from contracts import FakeJudge
from servers import in_thread

from latent_rewards import build_reward
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]
WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'trl')))\n"  # None: cannot be imported
)
CLIENTS = """
import asyncio, json
from latent_rewards import env
from latent_rewards.serving.adapters import client, verl
from latent_rewards.serving.client import RewardClient
row = {"prompt": "Name a prime.", "completion": "Seven."}
info = {"extra_info": {"prompt": row["prompt"]}}
out = [
    *RewardClient().score([row]), *asyncio.run(client().score_async([row])),
    asyncio.run(verl.compute_score("d", row["completion"], "7", **info))["score"],
    *env.weighted(prompts=[row["prompt"]], completions=[row["completion"]], completion_ids=[[1]], topic=["a"]),
    *env.verifier(prompts=[row["prompt"]], completions=[row["completion"]]),
]
print(json.dumps(out))
"""


def python(code: str, *, executable: str = sys.executable, check: bool = True, **env: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [executable, "-c", code]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def url() -> Any:
    names = ("weighted", "verifier")
    judge: Any = FakeJudge()
    judge.blocks = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=8))  # for /info
    service = Service([judge], lambda j: {n: build_reward(n, j) for n in names}, ServeSettings())
    with in_thread(service) as it:
        yield it


def test_clients_score_without_torch(url: str) -> None:
    got = json.loads(python(WITHOUT + CLIENTS, LATENT_REWARDS_SERVER=url).stdout)
    row = ["Name a prime."], ["Seven."]
    weighted, verifier = (float(build_reward(n, FakeJudge()).score(*row)[0]) for n in ("weighted", "verifier"))
    assert got == pytest.approx([*[weighted] * 4, verifier], rel=1e-6)


def test_without_torch_and_without_a_server_it_is_said_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "rewards.yaml"
    path.write_text("judge: {server: 'http://127.0.0.1:9'}\nrewards: {weighted: {scale: 2}}\n")
    for env, said in (
        ({}, "or set LATENT_REWARDS_SERVER to the URL of a judge server"),
        ({"LATENT_REWARDS_CONFIG": str(path)}, "give them to the judge server"),
        ({"LATENT_REWARDS_SERVER": "http://x", "LATENT_REWARDS_PROMPT": "a"}, "give them to the judge server"),
    ):
        done = python(WITHOUT + "from latent_rewards import env; env.weighted", check=False, **env)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: ") and said in last and "pip install 'latent-rewards[judge]'" in last


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("import latent_rewards", 0.5),
        (WITHOUT + "import latent_rewards.serving.adapters", 0.3),
        ("import sys; sys.argv[1:] = ['--help']; from latent_rewards.cli import app; app()", 0.5),
    ],
    ids=["import", "client", "help"],
)
def test_the_front_doors_open_fast(code: str, seconds: float) -> None:
    """In CPU time of the whole process, so that a busy machine does not count; the best of three."""

    def took() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(took() for _ in range(3)) < seconds


@pytest.mark.slow
def test_an_empty_environment_gets_the_client_alone(tmp_path: Path, url: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    there = str(tmp_path / "bin" / "python")
    subprocess.run([there, "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    listed = subprocess.run([there, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].lower() for line in listed.splitlines()[2:]}
    assert "latent-rewards" in names and not names & {"torch", "transformers", "trl"}
    assert len(json.loads(python(CLIENTS, executable=there, LATENT_REWARDS_SERVER=url, PYTHONPATH="").stdout)) == 5
