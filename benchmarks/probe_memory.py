"""Does training a probe hold more memory when there are more rows? Made-up states on disk, one process for each size.

    python -m benchmarks.probe_memory

Writes `benchmarks/results/probe-memory.json`: peak resident memory and seconds of one linear fit (Bradley-Terry, all
guards that need a pass of their own), for each number of rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.files.seal import sealed
from latent_rewards.judge.hf import Reading
from latent_rewards.probes import states as probe_states
from latent_rewards.probes.collect import write_shard
from latent_rewards.probes.examples import Example
from latent_rewards.probes.features import FeatureInfo, Features
from latent_rewards.probes.fit import Data, FitOptions, fit_head

SHARD = 512


def write(folder: Path, rows: int, width: int) -> Features:
    """Pairs in which the better text's state is moved along one direction, shard by shard."""
    info = FeatureInfo(
        "made up", "", "none", "", (1,), "normed", (), "bfloat16", f"{rows}x{width}", rows, SHARD, ("made up",)
    )
    (folder / "features.json").write_text(json.dumps(sealed(dataclasses.asdict(info))))
    draw = torch.Generator().manual_seed(0)
    direction = torch.randn(width, generator=draw)
    for k, start in enumerate(range(0, rows, SHARD)):
        number = torch.arange(start, min(start + SHARD, rows))
        label = (number % 2).float()
        lengths = torch.randint(20, 400, (len(number),), generator=draw).tolist()
        examples = [
            Example(f"prompt {n // 2}", "x" * length, float(n % 2), pair=n // 2, source="made up")
            for n, length in zip(number.tolist(), lengths, strict=True)
        ]
        states = torch.randn(len(number), width, generator=draw) + 0.1 * label[:, None] * direction
        reading = Reading(reasons=[None] * len(number), hidden={1: states})
        write_shard(folder / f"shard-{k:05d}.safetensors", reading, examples, info)
    return Features(folder)


def train(folder: Path) -> dict[str, float]:
    """One fit; the process is measured as a whole."""
    data = Data.of(Features(folder), [1])
    started, cpu = time.perf_counter(), time.process_time()
    options = FitOptions(objective="bradley_terry", strength=1e-3, guards=("balance", "erase"))
    tensors = fit_head(data, options)
    assert torch.isfinite(tensors["weight"]).all()
    return {
        "rows": len(data),
        "on_disk": not isinstance(data.x, np.ndarray),
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 40_000, 160_000, 640_000])
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument(
        "--most", type=int, default=probe_states.WHOLE_BYTES // 2**20, help="MiB of states held as a whole"
    )
    parser.add_argument("--json", action="store_true", help="print the figures instead of writing the file")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    probe_states.WHOLE_BYTES = args.most * 2**20
    if args.train:
        print(json.dumps(train(args.train)))
        return
    sizes = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), rows, args.width)
            line = [sys.executable, "-m", "benchmarks.probe_memory", "--most", str(args.most), "--train", folder]
            sizes.append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))
        if not args.json:
            print(sizes[-1], flush=True)
    found = provenance("benchmarks.probe_memory") | {"width": args.width, "most_mib": args.most, "sizes": sizes}
    if args.json:
        print(json.dumps(found))
    else:
        Path("benchmarks/results/probe-memory.json").write_text(to_json(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
