"""Real judge servers in processes of their own, on free ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, "-c", "from latent_rewards.cli.main import app; app()"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running `latent-rewards serve`."""

    def __init__(self, url: str, process: Any, log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options)

    def rss(self) -> int:
        """Resident memory, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


def environment(**extra: str) -> dict[str, str]:
    return (
        os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "CUDA_VISIBLE_DEVICES": "",
        }
        | extra
    )


@contextlib.contextmanager
def serving(folder: str, log: Path, *arguments: str, ready: bool = True, **env: str) -> Iterator[Server]:
    """A server around the judge in `folder`, ended at the end."""
    server = start(folder, log, *arguments, **env)
    try:
        if ready:
            wait_ready(server)
        yield server
    finally:
        stop(server)


@contextlib.contextmanager
def in_thread(service: Any) -> Iterator[str]:
    """The application around given judges, in this process: quick, for what is not about processes."""
    import uvicorn

    from latent_rewards.serving.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error", http="h11"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not (server.started and service.batcher.ready):
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


def start(folder: str, log: Path, *arguments: str, **env: str) -> Server:
    threads = ["--threads", str(torch.get_num_threads())]
    options = ["--judge", folder, "--dtype", "float32", *([] if "--port" in arguments else ["--port", "0"]), *threads]
    with log.open("ab") as out:
        before = out.tell()
        process = subprocess.Popen([*CLI, "serve", *options, *arguments], env=environment(**env), stderr=out)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"^(http://\S+) rewards", log.read_bytes()[before:].decode(), re.MULTILINE)
        if found:
            return Server(found[1], process, log)
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no server: {log.read_text()[-2000:]}")


def wait_ready(server: Server) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + "/ready", trust_env=False, timeout=20).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(server.log.read_text()[-2000:])


def stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


def launch(
    program: Path, *arguments: str, timeout: float, options: tuple[str, ...] = ("--multi_gpu",), **env: str
) -> list[Any]:
    """`accelerate launch` with two ranks on the CPU (gloo); what each wrote."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()), *options,
        str(program), *arguments,
    ]  # fmt: skip
    out = Path(arguments[2])
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(
        command, cwd=out, env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, "\n".join(
        x for x in (done.stdout + done.stderr).splitlines() if "[rank" in x or "rror" in x
    )[-6000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
