"""Every number the package gives on 200 fixed texts, as one JSON file: run before and after a change of structure.

    python -m benchmarks.same_numbers --out before.json      # at one commit
    python -m benchmarks.same_numbers --out after.json --against before.json     # at another; names what differs

Scores are written as exact hexadecimal floats; files (probes, exports) as SHA-256 of their tensors. What is read: every
reward on a tiny random judge (float32, one thread), the shipped probe and the read rewards on the embedded judge,
a calibration of each method, and the command line: score, best-of-n, evaluate, probe train and export. Ten minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

import latent_rewards
from latent_rewards import HFJudge, build_reward
from latent_rewards.data import open_ended
from latent_rewards.files.runs import commit

READ = ("weighted", "verifier", "cross_layer", "guarded", "contrastive", "ensemble")
OPTIONS: dict[str, dict[str, Any]] = {
    "verifier:log_odds": {"output": "log_odds"}, "cross_layer:raw": {"lens": "raw"}, "likert5": {"n_samples": 2},
    "likert10": {"n_samples": 2}, "weighted:hardened": {"prompt": "weighted_hardened"},
}  # fmt: skip


def texts(n: int = 200) -> tuple[list[str], list[str]]:
    """The first n pairs of the built-in set."""
    pairs = [(row["prompt"], answer) for row in open_ended() for answer in row["responses"]][:n]
    return [p for p, _ in pairs], [c for _, c in pairs]


def tiny_judge(folder: Path) -> str:
    """A random Llama with the embedded judge's tokenizer; the same weights at every commit."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = HFJudge("embedded").encoder.tokenizer.name_or_path
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def exact(values: Any) -> list[str]:
    """Floats so that no bit is lost."""
    return [float(x).hex() for x in np.asarray(values, dtype=np.float64).ravel()]


def scores(model: str, names: list[str], prompts: list[str], completions: list[str]) -> dict[str, list[str]]:
    """Each reward on all texts, on a judge of its own: what is read for others moves a reading by rounding."""
    out = {}
    for name in names:
        judge = HFJudge(model, dtype="float32", device="cpu")
        reward = build_reward(name.split(":")[0], judge, **OPTIONS.get(name, {}))
        out[name] = exact(reward.score(prompts, completions))
    return out


def calibrations(prompts: list[str], completions: list[str], judge: HFJudge) -> dict[str, list[str]]:
    """Each method, fitted on gold of the built-in set and read through `CalibratedReward`."""
    calibration, calibrated = _calibration()
    gold = [g for row in open_ended() for g in row["gold"]][: len(prompts)]
    reward = build_reward("verifier", judge, output="log_odds")
    raw, out = reward.score(prompts, completions), {}
    for method in ("affine", "platt", "temperature", "isotonic", "quantile"):
        targets = [float(g > 2) for g in gold] if method in ("platt", "temperature") else [float(g) for g in gold]
        fitted = calibration.fit(raw, None if method == "quantile" else targets, method=method)
        out[method] = exact(calibrated(reward, fitted).score(prompts, completions))
    return out


def _calibration() -> tuple[Any, Any]:
    try:
        from latent_rewards.rewards.calibrated import CalibratedReward, Calibration
    except ImportError:
        from latent_rewards.rewards.calibrated import CalibratedReward, Calibration
    return Calibration, CalibratedReward


def tensors(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor below a folder."""
    out = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for key in sorted(file.keys()):
                value = file.get_slice(key)[:] if file.get_slice(key).get_dtype() != "BF16" else None
                digest = path.read_bytes() if value is None else value.tobytes()
                out[f"{path.relative_to(folder)}:{key}"] = hashlib.sha256(digest).hexdigest()
    return out


def command_line(work: Path, judge: str, prompts: list[str], completions: list[str]) -> dict[str, Any]:
    """What score, best-of-n, evaluate, probe train and export write."""
    rows = [{"id": i, "prompt": p, "completion": c} for i, (p, c) in enumerate(zip(prompts, completions, strict=True))]
    lists = [
        {"prompt": row["prompt"], "chosen": row["responses"][int(np.argmax(row["gold"]))],
         "rejected": row["responses"][int(np.argmin(row["gold"]))]} for row in open_ended()
    ]  # fmt: skip
    for name, data in (("rows", rows), ("pairs", lists)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in data))
    run(work, "score", "--judge", judge, "--input", "rows.jsonl", "--output", "scored.jsonl", "--reward", "weighted",
        "--reward", "verifier", "--dtype", "float32")  # fmt: skip
    run(work, "best-of-n", "--judge", judge, "--input", "rows.jsonl", "--output", "bon", "--judge-option",
        "dtype=float32", "--reward", "weighted")  # fmt: skip
    run(work, "evaluate", "--judge", judge, "--rewards", "weighted,verifier,cross_layer", "--benchmarks", "pairs.jsonl",
        "--output", "eval", "--dtype", "float32", "--samples", "2", "--resamples", "200")  # fmt: skip
    run(work, "probe", "train", "pairs.jsonl", "--judge", judge, "--out", "probe", "--layers", "2,3")
    run(work, "export", "probe", "probe", "as-probe", "--judge", judge)
    run(work, "export", "verifier", "as-verifier", "--judge", judge)
    scored, picked = (
        [json.loads(line) for line in (work / name).open(encoding="utf-8")]
        for name in ("scored.jsonl", "bon/selected.jsonl")
    )
    table = json.loads((work / "eval" / "results.json").read_text())
    return {
        "score": {k: exact([r[k] for r in scored]) for k in ("weighted", "verifier")},
        "best-of-n": [hashlib.sha256(json.dumps(r, sort_keys=True).encode()).hexdigest()[:16] for r in picked],
        "evaluate": _numbers(table.get("benchmarks", table)),
        "probe train": {k: v for k, v in tensors(work / "probe").items() if k.startswith("probe.safetensors")},
        "export": {**tensors(work / "as-probe"), **tensors(work / "as-verifier")},
    }


def run(work: Path, *args: str) -> None:
    """One command of ours, of this source tree."""
    env = {**os.environ, "PYTHONPATH": str(Path(latent_rewards.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "latent_rewards", *args], cwd=work, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{args}: {done.stderr[-2000:]}")


def _numbers(value: Any, key: str = "") -> Any:
    """Numbers of a report, without times."""
    if isinstance(value, dict):
        return {k: _numbers(v, k) for k, v in sorted(value.items()) if "second" not in k and "time" not in k}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return float(value).hex() if isinstance(value, float) else value


def measure(limit: int) -> dict[str, Any]:
    """All of it."""
    torch.set_num_threads(1)
    prompts, completions = texts(limit)
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        folder = tiny_judge(work / "tiny-judge")
        return {
            "tiny": scores(folder, [*READ, *OPTIONS], prompts, completions),
            "embedded": scores("embedded", ["weighted", "verifier", "cross_layer", "probe"], prompts, completions),
            "calibrations": calibrations(prompts, completions, HFJudge(folder, dtype="float32", device="cpu")),
            "command line": command_line(work, folder, prompts, completions),
        }


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths at which two reports differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted({*a, *b}, key=str) for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    return [] if a == b else [path]


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--against", type=Path, help="what an earlier commit gave")
    p.add_argument("--limit", type=int, default=200)
    args = p.parse_args()
    report = {"commit": commit(), "torch": torch.__version__, "transformers": transformers.__version__,
              "numbers": measure(args.limit)}  # fmt: skip
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.against:
        found = differences(json.loads(args.against.read_text())["numbers"], report["numbers"])
        print("\n".join(found) if found else "the same, bit for bit")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
