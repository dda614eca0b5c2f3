"""The speed benchmarks run, on toy shapes and tiny rounds, and their floor is counted right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import scaling, soak, throughput, workloads  # noqa: E402
from benchmarks.contestants import expected  # noqa: E402


def run(module: str, *args: str) -> str:
    env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *args], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_gpu_benchmark_on_toy_shapes(tmp_path: Path) -> None:
    out = run("gpu", "--tiny", "--out", str(tmp_path))
    assert "unmeasured" in out and "no GPU" in out
    report = json.loads((tmp_path / "gpu-cpu-tiny.json").read_text())
    assert [r["shape"] for r in report["results"]] == ["toy", "toy with windows", "toy with sinks and experts"]
    for result in report["results"]:
        assert result["shared"] and result["largest_logit_difference_to_plain"] < 1e-4
        assert max(result["error"].values()) < 1e-5
        # Two prompts of 24 tokens behind one head of 96, three completions of 10 tokens each.
        assert (result["pairs"], result["unique_tokens"]) == (6, 96 + 2 * 24 + 6 * 10)
        assert set(result["contestants"]) == {"generate", "forward", "ours", "ours, half depth"}
        assert all(c["pairs_per_second"] > 0 for c in result["contestants"].values())


def test_gpu_benchmark_says_what_is_unmeasured_without_a_gpu(tmp_path: Path) -> None:
    assert "unmeasured" in run("gpu", "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_floor_by_hand(tmp_path: Path) -> None:
    config = {"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
              "num_key_value_heads": 1}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = throughput.judge_shape(str(tmp_path))
    # q, o: 4 x 4; k, v: 4 x 2; gate, up, down: 4 x 8; three layers.
    assert shape == throughput.Shape(3 * (16 + 16 + 8 + 8 + 3 * 32), 3, 4)
    flops, tokens = throughput.floor_flops([[1, 2, 3], [1, 2, 4], [1, 2, 4]], [[], [9]], shape)
    # The tree: 1, 2, then 3, 9 and 4, 9: six tokens that attend to 1, 2, 3, 4, 3, 4.
    assert (flops, tokens) == (2 * shape.linear * 6 + 4 * 4 * 3 * 17, 6)
    # A window of two in one of the three layers: there they attend to 1, 2, 2, 2, 2, 2.
    flops, _ = throughput.floor_flops([[1, 2, 3], [1, 2, 4]], [[], [9]], shape._replace(windows=(2,)))
    assert flops == 2 * shape.linear * 6 + 4 * 4 * (2 * 17 + 11)


def test_expected_rating_of_label_logits() -> None:
    assert expected([[0.0, 0.0], [100.0, 0.0]], [2.0, 4.0]) == pytest.approx([3.0, 2.0])


def test_spread_keeps_the_ends_apart() -> None:
    assert workloads.spread(8, 4) == [0, 2, 4, 6]
    assert workloads.spread(3, 99) == [0, 1, 2]
    assert workloads.spread(5, 0) == [0]


def test_a_contestant_that_cannot_start_is_named(tmp_path: Path) -> None:
    work = tmp_path / "work.json"
    work.write_text(json.dumps({"model": str(tmp_path / "nowhere"), "work": {}}))
    with pytest.raises(RuntimeError, match=r"generate: ended with status 1: .*Error"):
        throughput.Worker("generate", sys.executable, work, 1, 120)


def test_growth_is_counted_without_the_shared_part() -> None:
    curves: dict[str, Any] = {
        "completions per prompt (G)": {"x": [1, 8, 16], "seconds": [3.0, 10.0, 18.0]},
        "rewards on one prompt": {"x": [1, 2], "seconds": [2.0, 2.1]},
    }
    for c in curves.values():
        c["line"] = scaling.line(c["x"], c["seconds"])
    found = scaling.checks(curves)
    assert found["8 -> 16 completions: growth of the completions' own share"] == pytest.approx(2.0)
    assert found["second reward on the same prompt: extra"] == pytest.approx(0.05)
    assert found["R2: completions per prompt (G)"] == pytest.approx(1.0)


def test_flatness_leaves_the_warm_up_out() -> None:
    readings = [{"seconds": float(s), "rss_mb": m} for s, m in ((0, 100), (1, 500), (2, 1000), (5, 1020), (10, 1010))]
    assert soak.flatness(readings) == pytest.approx(0.02)


def test_growth_after_the_warm_up() -> None:
    columns = ("seconds", "threads", "files", "cpu_seconds", "tokens")
    rows = ((0, 1, 1, 0, 0), (2, 3, 9, 10, 500), (6, 5, 9, 20, 1500), (10, 4, 8, 30, 2400))
    found = soak.growth([dict(zip(columns, map(float, r), strict=True)) for r in rows])
    assert found == pytest.approx({
        "threads": 1, "files": -1, "tokens_per_cpu_second": 95, "throughput_last_half_against_first": 0.9,
    })  # fmt: skip


def test_no_result_or_page_names_a_folder_of_a_machine() -> None:
    root = Path(__file__).parents[2]
    pages = [
        root / "README.md",
        *(root / "docs").glob("*.md"),
        *(root / "benchmarks").rglob("*.md"),
        *(root / "benchmarks").rglob("*.json"),
    ]
    assert len(pages) > 20
    assert not [p.name for p in pages if re.search(r"(?<![\w.>])/(work|tmp|root|home)/", p.read_text())]
