"""Sixty preference rows in each of the hub's formats go through every command as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from latent_rewards.cli.main import app
from latent_rewards.judge.layouts import judged

FACTS = [("capital of Italy", "Rome", "Oslo"), ("largest ocean", "the Pacific", "the Baltic"),
         ("author of Faust", "Goethe", "Kafka"), ("symbol of gold", "Au", "Fe"),
         ("square of 12", "144", "122"), ("opposite of cold", "hot", "ice")]  # fmt: skip
ASKED = [(f"What is the {q}? ({k})", f"It is {good}.", f"It is {bad}.") for k in range(10) for q, good, bad in FACTS]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def rated(text: str, rating: float, **more: Any) -> dict[str, Any]:
    """A completion of UltraFeedback, with a rating of one aspect that could not be given."""
    aspects = {"helpfulness": {"Rating": str(rating), "Rationale": "."}, "honesty": {"Rating": "N/A", "Rationale": "."}}
    return {"model": "m", "response": text, "annotations": aspects, "overall_score": 10.0, **more}


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "strings": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ASKED],
    "one_message": [{"prompt": [user(p)], "chosen": [said(c)], "rejected": [said(r)]} for p, c, r in ASKED],
    "ultrafeedback_binarized": [
        {"prompt": p, "prompt_id": str(i), "chosen": [user(p), said(c)], "rejected": [user(p), said(r)],
         "messages": [user(p), said(c)], "score_chosen": 8.0, "score_rejected": 3.0}
        for i, (p, c, r) in enumerate(ASKED)
    ],
    "implicit_prompt": [{"chosen": [user(p), said(c)], "rejected": [user(p), said(r)]} for p, c, r in ASKED],
    "hh_text": [
        {"chosen": f"\n\nHuman: {p}\n\nAssistant: {c}", "rejected": f"\n\nHuman: {p}\n\nAssistant: {r}"}
        for p, c, r in ASKED
    ],
    "ultrafeedback": [
        {"source": "s", "instruction": p, "completions": [rated(c, 5), rated(r, 1), rated(f"{r} Or {c}", 3)],
         "correct_answers": ["None"]}
        for p, c, r in ASKED
    ],
}  # fmt: skip


@pytest.fixture(params=sorted(LAYOUTS))
def layout(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=["jsonl", "parquet"])
def rows(request: Any, layout: str, tmp_path: Path) -> Path:
    """The rows of a layout in a file; Parquet gives each message and object every key."""
    path = tmp_path / f"{layout}.{request.param}"
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in LAYOUTS[layout]))
    else:
        datasets.Dataset.from_list(LAYOUTS[layout]).to_parquet(path)
    return path


def invoke(*arguments: Any) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return done


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluate(rows: Path, layout: str, folder: str, tmp_path: Path) -> None:
    invoke("evaluate", "--judge", folder, "--dtype", "float32", "--reward", "weighted", "--benchmarks", rows,
           "--output", tmp_path / "eval", "--resamples", 100)  # fmt: skip
    (found,) = json.loads((tmp_path / "eval" / "results.json").read_text())["benchmarks"]
    assert found["items"] == 60 and not found["bad_rows"]
    assert found["kind"] == ("list" if layout == "ultrafeedback" else "pair")


def test_probe_then_export(rows: Path, folder: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    invoke("probe", "train", rows, "--judge", folder, "--dtype", "float32", "--layers", 2, "--output", probe)
    invoke("export", "probe", probe, "--judge", folder, "--dtype", "float32", "--output", tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()


def test_best_of_n(rows: Path, layout: str, folder: str, tmp_path: Path) -> None:
    common = ["best-of-n", "--judge", folder, "--dtype", "float32", "--input", rows]
    invoke(*common, "--output", tmp_path / "best")
    best, scored = (read(tmp_path / "best" / f"{name}.jsonl") for name in ("selected", "scored"))
    assert len(best) == 60 and all(len(r["weighted"]) == (3 if layout == "ultrafeedback" else 2) for r in scored)
    for (prompt, good, bad), row in zip(ASKED, best, strict=True):
        assert text(row.get("instruction", row["prompt"] if "prompt" in row else None)) == prompt
        assert text(row["completion"]) in (good, bad, f"{bad} Or {good}")
    invoke(*common, "--output", tmp_path / "pairs", "--select", "pairs", "--margin", 0)
    for (_, good, bad), row in zip(ASKED, read(tmp_path / "pairs" / "selected.jsonl"), strict=True):
        assert {text(row["chosen"]), text(row["rejected"])} <= {good, bad, f"{bad} Or {good}"}
        if layout == "ultrafeedback_binarized":  # what is to be imitated is what was chosen here
            assert row["messages"] == [user(row["prompt"]), said(row["chosen"])]


@pytest.mark.parametrize(("high", "low"), [(5.0, 5.0), (3, "4")])
@pytest.mark.parametrize(
    ("better", "worse"), [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")]
)
def test_a_pair_that_was_not_rated_higher_is_none(better: str, worse: str, high: object, low: object) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", better: high, worse: low}
    with pytest.raises(ValueError, match=f"{better} (equals|is below) {worse} .* not the better one"):
        judged(row, "pair")
    assert judged({**row, better: 9}, "pair").gold == [1, 0]
    assert judged({**row, better: None}, "pair").gold == judged({**row, worse: "unknown"}, "pair").gold == [1, 0]


def text(said: Any) -> str:
    return str(said if isinstance(said, str) else said[-1]["content"])


def test_score(rows: Path, layout: str, folder: str, tmp_path: Path) -> None:
    common = ["score", "--judge", folder, "--dtype", "float32", "--input", rows, "--limit", 3]
    if layout == "ultrafeedback":
        done = CliRunner().invoke(app, [str(a) for a in [*common, "--output", tmp_path / "s.jsonl"]])
        assert done.exit_code == 2 and "best-of-n` scores every one of a list" in done.output.replace("\n", " ")
        return
    invoke(*common, "--output", tmp_path / "both.jsonl")
    both = read(tmp_path / "both.jsonl")
    for side in ("chosen", "rejected"):
        invoke(*common, "--output", tmp_path / f"{side}.jsonl", "--completion-column", side)
        want = [row["weighted"] for row in read(tmp_path / f"{side}.jsonl")]
        assert [row[f"weighted_{side}"] for row in both] == pytest.approx(want, abs=1e-5)


def test_all_layouts_give_the_judge_the_same(folder: str, tmp_path: Path) -> None:
    scores = []
    for name in sorted(set(LAYOUTS) - {"ultrafeedback"}):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in LAYOUTS[name][:4]))
        out = tmp_path / f"{name}-scored.jsonl"
        invoke("score", "--judge", folder, "--dtype", "float32", "--input", path, "--output", out)
        scores.append([[row["weighted_chosen"], row["weighted_rejected"]] for row in read(out)])
    assert all(s == scores[0] for s in scores)


def test_a_folder_of_a_saved_data_set(folder: str, tmp_path: Path) -> None:
    datasets.Dataset.from_list(LAYOUTS["ultrafeedback_binarized"]).save_to_disk(str(tmp_path / "set"))
    invoke("evaluate", "--judge", folder, "--reward", "weighted", "--benchmarks", tmp_path / "set", "--limit", 5,
           "--output", tmp_path / "eval", "--resamples", 100)  # fmt: skip
    invoke("probe", "train", tmp_path / "set", "--judge", folder, "--layers", 1, "--output", tmp_path / "probe")


@pytest.mark.parametrize(
    "command",
    [
        ["score", "--output", "{out}", "--input", "{rows}"],
        ["evaluate", "--reward", "weighted", "--output", "{out}", "--benchmarks", "{rows}"],
        ["probe", "train", "--output", "{out}", "{rows}"],
        ["best-of-n", "--output", "{out}", "--input", "{rows}"],
    ],
    ids=lambda c: c[0],
)
def test_rows_of_no_layout_are_told_those_there_are(command: list[str], folder: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"context": "What?", "win": "a", "lose": "b"}))
    filled = [c.format(out=tmp_path / "out.jsonl", rows=rows) for c in command]
    done = CliRunner().invoke(app, [*filled, "--judge", folder])
    told = " ".join(done.output.split())
    assert done.exit_code == 2 and "UltraFeedback" in told and "prompt, chosen, rejected" in told and "'win'" in told


def test_half_a_pair_is_counted_and_named(folder: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    rows.write_text("".join(json.dumps(r) + "\n" for r in (good, {"prompt": "p", "chosen": "a"}, good)))
    done = CliRunner().invoke(app, [
        "score", "--judge", folder, "--dtype", "float32", "--input", str(rows), "--output", str(tmp_path / "s.jsonl"),
    ])  # fmt: skip
    assert "row 2: column 'rejected' is missing or null" in done.output
    assert "rows 3, scored 3 (1 in part), null 0" in done.output
    assert [row["weighted_rejected"] is None for row in read(tmp_path / "s.jsonl")] == [False, True, False]


def test_what_could_have_been_meant_is_said() -> None:
    def said(*words: str) -> str:
        return CliRunner().invoke(app, words).output

    assert "one of these comes first: probe, verifier, labels" in said("export", "--judge", "x")
    assert "what is measured goes with --benchmarks" in said("evaluate", "rows.jsonl")
