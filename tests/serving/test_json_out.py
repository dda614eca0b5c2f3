"""Files that we write are JSON for every reader, also where a row holds NaN."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from latent_rewards.best_of_n.shards import ShardStore, dump
from latent_rewards.cli.main import app
from latent_rewards.files.outputs import to_json
from latent_rewards.files.seal import sealed, unsealed

NAN, INF = float("nan"), float("inf")


def strictly(text):
    def refuse(constant):
        raise ValueError(f"not JSON: {constant}")

    return json.loads(text, parse_constant=refuse)


def test_nan_and_infinity_are_null_at_any_depth():
    value = {
        "a": NAN, "b": [1.5, INF, {"c": (-INF, 2)}], "d": np.float32(NAN), "e": np.array([1.0, NAN]), "f": np.int64(3),
        "g": "NaN", NAN: 1, "h": np.float64(INF), "i": None, "j": "\u00e9", "k": True,
    }  # fmt: skip
    assert strictly(to_json(value)) == {
        "a": None, "b": [1.5, None, {"c": [None, 2]}], "d": None, "e": [1.0, None], "f": 3, "g": "NaN", "nan": 1,
        "h": None, "i": None, "j": "\u00e9", "k": True,
    }  # fmt: skip
    assert to_json({"b": 1, "a": "\u00e9"}, sort_keys=True) == '{"a": "\u00e9", "b": 1}'
    assert to_json(["\ud800\u00e9", NAN]) == '["\\ud800\\u00e9", null]'


def test_shards_and_sealed_descriptions(tmp_path):
    assert strictly(dump({"rows": [{"human": NAN}]})) == {"rows": [{"human": None}]}
    ShardStore(tmp_path).write(0, [{"rows": [{"human": INF}]}])
    assert strictly((tmp_path / "shards" / "00000000.jsonl").read_text()) == {"rows": [{"human": None}]}
    raw = sealed({"metrics": [{"rank": NAN}]})
    assert unsealed(strictly(json.dumps(raw))) == {"metrics": [{"rank": None}]}


def test_pass_through_columns_of_a_data_frame(folder, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {
        "prompt": ["Name a prime."] * 3, "completion": ["7", "8", "9"], "human": [4.0, NAN, INF],
        "deep": [{"x": [NAN, 1.0]}, {"x": [2.0]}, {"x": []}],
    }  # fmt: skip
    parquet.write_table(pa.table(rows), tmp_path / "in.parquet")
    judge = ["--judge", folder, "--dtype", "float32", "--device", "cpu"]
    for command in (
        ["score", *judge, "--output", str(tmp_path / "out.jsonl")],
        ["score", *judge, "--output", str(tmp_path / "out.parquet")],
        ["best-of-n", "--judge", folder, "--select", "best", "--output", str(tmp_path / "run")],
    ):
        done = CliRunner().invoke(app, [*command, "--input", str(tmp_path / "in.parquet")])
        assert done.exit_code == 0, done.output
    for path in (tmp_path / "out.jsonl", tmp_path / "run" / "scored.jsonl"):
        out = [strictly(line) for line in path.read_bytes().splitlines()]
        assert [r["human"] for r in out] == [4.0, None, None] and out[0]["deep"] == {"x": [None, 1.0]}
        assert all(isinstance(r["weighted"], float) for r in out)
    strictly((tmp_path / "run" / "selected.jsonl").read_bytes())
    kept = parquet.read_table(tmp_path / "out.parquet")["human"].to_pylist()
    assert kept[0] == 4.0 and np.isnan(kept[1]) and kept[2] == INF


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Name a prime.", "completions": [[{"role": "user", "content": "Name a prime."},
          {"role": "assistant", "content": c}] for c in ("7", "eight")]}],
        [{"completions": [[{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": c}]
          for c in ("7", "eight")]}],
        [{"completion": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": c}]}
         for c in ("7", "eight")],
    ],
)  # fmt: skip
def test_best_of_n_judges_the_last_turn_of_dialogues(folder, tmp_path, rows):
    plain = {"prompt": "Name a prime.", "completions": ["7", "eight"]}
    found = []
    for name, some in (("plain", [plain]), ("dialogues", rows)):
        source, out = tmp_path / f"{name}.jsonl", tmp_path / name
        source.write_text("".join(json.dumps(r) + "\n" for r in some))
        command = ["best-of-n", "--judge", folder, "--select", "pairs", "--input", str(source), "--output", str(out)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        selected = json.loads((out / "selected.jsonl").read_text())
        found.append({k: selected[k] for k in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")})
    assert found[0] == found[1]


def test_score_judges_the_last_turn_of_dialogues(folder, tmp_path):
    pair = [[{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": c}] for c in ("7", "8")]
    layouts = {
        "text": {"prompt": "Name a prime.", "chosen": "7", "rejected": "8"},
        "prompt": {"prompt": "Name a prime.", "chosen": pair[0], "rejected": pair[1]},
        "implicit": {"chosen": pair[0], "rejected": pair[1]},
        "HH": {"chosen": "\n\nHuman: Name a prime.\n\nAssistant: 7",
               "rejected": "\n\nHuman: Name a prime.\n\nAssistant: 8"},
        "strange": {"prompt": "Name a fish.", "chosen": pair[0], "rejected": pair[1]},
    }  # fmt: skip
    scores = {}
    for name, row in layouts.items():
        source, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-out.jsonl"
        source.write_text(json.dumps(row) + "\n")
        done = CliRunner().invoke(
            app, ["score", "--judge", folder, "--dtype", "float32", "--device", "cpu", "--completion-column", "chosen",
                  "--input", str(source), "--output", str(out)]
        )  # fmt: skip
        scores[name] = json.loads(out.read_text())["weighted"]
        if name == "strange":
            assert "row 1: the dialogue does not begin with the row's prompt" in done.output
    assert scores["text"] == scores["prompt"] == scores["implicit"] == scores["HH"] and scores["text"] is not None
    assert scores["strange"] is None
