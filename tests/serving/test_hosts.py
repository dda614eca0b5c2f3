"""Several replicas behind nginx or Ray Serve, as `configs/serving` starts them: one is killed, no answer is lost."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml
from servers import ROOT, environment, free_port, serving

from latent_rewards import HFJudge, build_reward
from latent_rewards.serving.client import RewardClient

pytestmark = pytest.mark.slow
CONFIGS = ROOT / "configs" / "serving"
ROWS = [
    {"prompt": f"Name a prime above {n}.", "completion": text}
    for n in range(60)
    for text in ("Seven.", f"{n} and more")
]


@pytest.fixture(scope="module")
def expected(folder: str) -> list[float]:
    reward = build_reward("weighted", HFJudge(folder, dtype="float32"))
    return list(reward.score([row["prompt"] for row in ROWS], [row["completion"] for row in ROWS]))


def under_load(url: str, kill: Callable[[], object], expected: list[float], *, least: int = 600) -> None:
    """Eight clients ask for one row after the other; a replica is killed on the way; all answers are right."""

    def ask(i: int) -> float:
        if i == least // 3:
            kill()
        return RewardClient(url, reward="weighted", deadline=90).score([ROWS[i % len(ROWS)]])[0]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(least)))
    assert got == pytest.approx([expected[i % len(ROWS)] for i in range(least)], abs=1e-5)
    assert len({round(x, 5) for x in expected}) > len(ROWS) // 2, "rows must differ for a swap to show"


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + "/ready", trust_env=False, timeout=20).status_code == 200:
                return
        time.sleep(0.3)
    raise AssertionError(log.read_text()[-4000:])


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own, ended with it."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_nginx_passes_over_a_server_that_is_killed(folder: str, tmp_path: Path, expected: list[float]) -> None:
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    with serving(folder, tmp_path / "one") as one, serving(folder, tmp_path / "two") as two:
        text = (CONFIGS / "nginx.conf").read_text().replace("listen 8080;", f"listen 127.0.0.1:{port};")
        for name, server in (("judge-1:8077", one), ("judge-2:8077", two)):
            assert name in text
            text = text.replace(name, server.url.removeprefix("http://"))
        (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{text}")
        command = [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
        url = f"http://127.0.0.1:{port}"
        with running(command, tmp_path / "log", environment()) as process:
            wait_for(url, process, tmp_path / "log", 20)
            under_load(url, two.process.kill, expected)
            served = [int(found) for found in re.findall(r"rows_total (\d+)", one.http().get("/metrics").text)]
            assert 0 < served[0], "the server that is left has worked"
        assert two.process.wait(10) == -signal.SIGKILL


def test_ray_serve_replaces_a_replica_that_is_killed(folder: str, tmp_path: Path, expected: list[float]) -> None:
    python = os.environ.get("RAY_SERVE")
    if python is None:
        pytest.skip("set RAY_SERVE to the Python of an environment with 'ray[serve]' and this package")
    port = free_port()
    config = yaml.safe_load((CONFIGS / "ray_serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"]["judge"] = {"model": folder, "device": "cpu", "dtype": "float32"}
    (deployment,) = application["deployments"]
    deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    (tmp_path / "ray_serve.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    env = environment(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", OMP_NUM_THREADS="1")
    command = [str(Path(python).with_name("serve")), "run", str(tmp_path / "ray_serve.yaml")]
    url = f"http://127.0.0.1:{port}"
    with running(command, tmp_path / "log", env) as process:
        wait_for(url, process, tmp_path / "log", 240)
        ours = replicas(process.pid)
        assert len(ours) == 2, "both replicas serve"
        assert next(iter(httpx.get(url + "/info", trust_env=False).json()["rewards"])) == "weighted", "order is kept"
        under_load(url, lambda: os.kill(ours[0], signal.SIGKILL), expected)
        assert ours[0] not in replicas(process.pid)
        end = time.monotonic() + 60
        while len(replicas(process.pid)) < 2 and time.monotonic() < end:
            time.sleep(0.5)
        assert len(replicas(process.pid)) == 2, "Ray starts another"


def replicas(root: int) -> list[int]:
    """Processes below `root` that are replicas of the judge, by what Ray calls them."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")

    def below(pid: int) -> bool:
        return pid == root or (pid in parents and below(parents[pid]))

    return [pid for pid, name in names.items() if "JudgeServer" in name and "ServeReplica" in name and below(pid)]
