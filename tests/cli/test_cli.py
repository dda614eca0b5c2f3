"""`latent-rewards score`, end to end on a tiny judge that is saved to a folder."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from latent_rewards import HFJudge, ProbabilityWeightedReward, VerifierReward
from latent_rewards.cli.main import app
from latent_rewards.files.outputs import open_output
from latent_rewards.files.sources import open_source

ROWS = [
    {"prompt": "Capital of France?", "completion": "Paris.", "id": 1, "tags": ["a", "b"]},
    {"prompt": "Capital of Peru?", "completion": "", "id": 2, "tags": []},
    {"prompt": "Two and two?", "completion": "Four, of course <|im_end|>", "id": 3, "tags": ["c"]},
    {"prompt": "Name a colour.", "completion": "Ünïted blue ☃", "id": 4, "tags": ["d"]},
    {"prompt": "Name a colour.", "completion": "Red", "id": 5, "tags": ["d"]},
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Folder of a random two-layer Llama that reads bytes, at most 2048 of them."""
    folder = tmp_path_factory.mktemp("judge")
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token=None))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2048, initializer_range=0.3, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def score(judge):
    """Run the command in this process; output and error output come back together."""

    def run(*arguments):
        return CliRunner().invoke(
            app, ["score", "--judge", judge, "--dtype", "float32", "--device", "cpu", *map(str, arguments)]
        )

    return run


@pytest.fixture(scope="module")
def expected(judge):
    reward = ProbabilityWeightedReward(HFJudge(judge, dtype="float32", device="cpu"))
    return reward.score([r["prompt"] for r in ROWS], [r["completion"] for r in ROWS])


def write(path, rows):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path):
    if path.is_dir():
        return datasets.load_from_disk(str(path)).to_list()
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = path.read_bytes()
    return [json.loads(x) for x in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def save(path, rows):
    if path.suffix in (".jsonl", ".gz"):
        return write(path, rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


FORMATS = ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows"]


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("origin", FORMATS)
def test_every_format_to_every_format(tmp_path, score, expected, origin, target):
    (tmp_path / "out").mkdir()
    result = score("--input", save(tmp_path / origin, ROWS), "--output", tmp_path / "out" / target, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    got = read(tmp_path / "out" / target)
    np.testing.assert_allclose([r.pop("weighted") for r in got], expected, atol=1e-5)
    assert got == ROWS
    assert os.listdir(tmp_path / "out") == [target]
    assert "rows 5, scored 5, null 0" in result.output and "5/5 [" in result.output and "pair/s" in result.output


def test_scores_differ_between_rows(expected):
    assert len(np.unique(expected.round(6))) == len(ROWS)


def test_parquet_types_and_metadata_pass_through(tmp_path, score):
    table = pa.table(
        {
            "prompt": pa.array(["a", "b"], pa.large_string()),
            "completion": pa.array(["x", "y"]).dictionary_encode(),
            "when": pa.array([1, 2], pa.timestamp("ns")),
            "small": pa.array([1, None], pa.int8()),
        }
    ).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "in.parquet")
    assert score("--input", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet").exit_code == 0
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.drop_columns("weighted").equals(pq.read_table(tmp_path / "in.parquet"), check_metadata=False)
    assert out.schema.metadata[b"note"] == b"kept" and out.schema.field("weighted").type == pa.float64()


def test_datasets_features_splits_and_selected_rows(tmp_path, score, expected):
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"), "completion": datasets.Value("string"),
            "id": datasets.ClassLabel(num_classes=9), "tags": datasets.List(datasets.Value("string")),
        }
    )  # fmt: skip
    test = datasets.Dataset.from_list(ROWS, features=features).select([4, 0])
    datasets.DatasetDict({"train": test, "test": test}).save_to_disk(str(tmp_path / "all"))
    result = score("--input", tmp_path / "all", "--output", tmp_path / "out")
    assert result.exit_code == 2 and "['test', 'train']" in result.output
    assert score("--input", tmp_path / "all", "--split", "test", "--output", tmp_path / "out").exit_code == 0
    out = datasets.load_from_disk(str(tmp_path / "out"))
    assert out.features == {**features, "weighted": datasets.Value("float64")}
    np.testing.assert_allclose(out["weighted"], expected[[4, 0]], atol=1e-5)


BAD = [
    ROWS[0],
    "{not json",
    {"prompt": "no completion", "id": 7},
    {"prompt": None, "completion": "x"},
    {"prompt": "wrong type", "completion": {"x": 1}},
    {"prompt": "wrong content", "completion": [{"role": "assistant", "content": 5}]},
    {"prompt": "an image", "completion": [{"role": "assistant", "content": [{"type": "image"}]}]},
    {"prompt": "too long", "completion": "x" * 5000},
    "[1, 2]",
    ROWS[4],
]
REASONS = {
    1: "line 2 is not JSON", 2: "column 'completion' is missing or null", 3: "column 'prompt' is missing or null",
    4: "must be text or a list of messages", 5: "whose content is int", 6: "'image' part", 7: "tokens, but this judge",
    8: "line 9 is no JSON object but list",
}  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_bad_rows_are_kept_with_null_and_told_by_number(tmp_path, score, expected, batch_size):
    source = write(tmp_path / "in.jsonl", BAD)
    result = score("--input", source, "--output", tmp_path / "out.jsonl", "--batch-size", batch_size)
    assert result.exit_code == 0 and "rows 10, scored 2, null 8" in result.output
    got = read(tmp_path / "out.jsonl")
    scores = [r.pop("weighted") for r in got]
    assert [s is None for s in scores] == [i in REASONS for i in range(len(BAD))]
    np.testing.assert_allclose([scores[0], scores[-1]], expected[[0, 4]], atol=1e-5)
    assert got == [{"_raw": r} if isinstance(r, str) else r for r in BAD]
    lines = [line[line.index("row ") :] for line in result.output.splitlines() if "row " in line and ": " in line]
    for row, reason in REASONS.items():
        assert [x for x in lines if x.startswith(f"row {row + 1}: ") and reason in x], (row, lines)
    assert len(lines) == len(REASONS)


def test_only_the_first_bad_rows_are_listed(tmp_path, score):
    source = write(tmp_path / "in.jsonl", [*ROWS, *["{"] * 30])
    result = score("--input", source, "--output", tmp_path / "out.jsonl")
    assert result.output.count("is not JSON") == 20 and "and 10 more rows" in result.output


def test_bytes_that_are_no_text_and_lone_surrogates(tmp_path, score):
    good = b'{"prompt": "a", "completion": "\\ud800 b"}\n'
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\n  \n" + b'{"prompt": "\xff"}\n')
    assert score("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl").exit_code == 0
    first, second = read(tmp_path / "out.jsonl")
    assert first["completion"] == "\ud800 b" and first["weighted"] is not None
    assert second == {"_raw": '{"prompt": "\\xff"}', "weighted": None}


def test_message_lists_mixed_with_text(tmp_path, score, expected):
    def as_messages(text, role):
        return [{"role": role, "content": text}]

    rows = [dict(ROWS[0]), dict(ROWS[4])]
    rows[0]["prompt"] = as_messages(rows[0]["prompt"], "user")
    rows[1]["completion"] = as_messages([{"type": "text", "text": "Red"}], "assistant")
    source = write(tmp_path / "in.jsonl", rows)
    assert score("--input", source, "--output", tmp_path / "out.jsonl").exit_code == 0
    got = read(tmp_path / "out.jsonl")
    np.testing.assert_allclose([r["weighted"] for r in got], expected[[0, 4]], atol=1e-5)
    result = score("--input", source, "--output", tmp_path / "out.parquet")
    assert result.exit_code == 2 and "does not fit a column of one type" in result.output


def test_message_lists_in_parquet(tmp_path, score, expected):
    rows = [{"prompt": [{"role": "user", "content": r["prompt"]}], "completion": r["completion"]} for r in ROWS]
    source = save(tmp_path / "in.parquet", rows)
    assert score("--input", source, "--output", tmp_path / "out.parquet").exit_code == 0
    np.testing.assert_allclose([r["weighted"] for r in read(tmp_path / "out.parquet")], expected, atol=1e-5)


def test_rows_with_different_keys_become_parquet(tmp_path, score):
    rows = [*ROWS, {"prompt": "p", "completion": "c", "id": 0.5, "late": {"x": 1}}, "{"]
    source = write(tmp_path / "in.jsonl", rows)
    assert score("--input", source, "--output", tmp_path / "out.parquet", "--batch-size", 2).exit_code == 0
    got = read(tmp_path / "out.parquet")
    assert got[5]["late"] == {"x": 1} and got[0]["late"] is None and got[5]["id"] == 0.5 and got[6]["_raw"] == "{"


def test_several_rewards_options_and_columns(tmp_path, score, judge):
    rows = [{"question": r["prompt"], "answer": r["completion"], "prompt": "a decoy"} for r in ROWS]
    result = score(
        "--input", write(tmp_path / "in.jsonl", rows), "--output", tmp_path / "out.jsonl",
        "--prompt-column", "question", "--completion-column", "answer",
        "--reward", "weighted", "--reward", "verifier",
        "--score-column", "w", "--score-column", "v",
        "--reward-option", "verifier.output=log_odds", "--reward-option", "scale=2",
        "--limit", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    got = read(tmp_path / "out.jsonl")
    assert len(got) == 3 and all(r["prompt"] == "a decoy" for r in got)
    frozen = HFJudge(judge, dtype="float32", device="cpu")
    for column, reward in (
        ("w", ProbabilityWeightedReward(frozen, scale=2)),
        ("v", VerifierReward(frozen, output="log_odds", scale=2)),
    ):
        want = reward.score([r["prompt"] for r in ROWS[:3]], [r["completion"] for r in ROWS[:3]])
        np.testing.assert_allclose([r[column] for r in got], want, atol=1e-5)


def test_columns_fill_the_slots_of_a_prompt(tmp_path, score):
    rows = [{"prompt": "p", "completion": "c", "criteria": c, "reference": r} for c, r in
            [("short", None), ("short", "a reference"), ("long", None), (None, None)]]  # fmt: skip
    source = write(tmp_path / "in.jsonl", rows)
    result = score("--input", source, "--output", tmp_path / "out.jsonl", "--prompt", "rubric")
    scores = [r["weighted"] for r in read(tmp_path / "out.jsonl")]
    assert result.exit_code == 0 and scores[3] is None and len(set(scores)) == 4
    assert "row 4: column 'criteria' is missing or null" in result.output


def test_own_prompt_file_and_a_prompt_without_completion(tmp_path, score):
    own = tmp_path / "own.yaml"
    own.write_text('kind: label\nbody: "{{ prompt }} / {{ completion }}: 1 or 2?"\nlabels: {"1": 1, "2": 2}\n')
    source = write(tmp_path / "in.jsonl", ROWS)
    assert score("--input", source, "--output", tmp_path / "a.jsonl", "--prompt", own).exit_code == 0
    assert all(1 <= r["weighted"] <= 2 for r in read(tmp_path / "a.jsonl"))
    tasks = write(tmp_path / "tasks.jsonl", [{"prompt": r["prompt"]} for r in ROWS])
    result = score("--input", tasks, "--output", tmp_path / "b.jsonl", "--reward", "verifier", "--prompt",
                   "answerability")  # fmt: skip
    assert result.exit_code == 0 and all(0 <= r["verifier"] <= 1 for r in read(tmp_path / "b.jsonl"))


def test_likert_answers_that_do_not_parse_are_null(tmp_path, score):
    source = write(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    result = score("--input", source, "--output", out, "--reward", "weighted", "--reward", "likert10",
                   "--reward-option", "likert10.max_new_tokens=3", "--limit", 2)  # fmt: skip
    assert result.exit_code == 0 and "no answer held a rating" in result.output
    assert [r["likert10"] for r in read(out)] == [None, None] and all(r["weighted"] is not None for r in read(out))


@pytest.mark.parametrize(("choice", "code"), [("none", 0), ("truncate", 0), ("error", 2)])
def test_on_overflow(tmp_path, score, choice, code):
    source = write(tmp_path / "in.jsonl", BAD[:1] + BAD[7:8])
    out = tmp_path / "out.jsonl"
    result = score("--input", source, "--output", out, "--on-overflow", choice, "--batch-size", 1)
    assert result.exit_code == code
    if choice == "error":
        assert "error: row 2: " in result.output and not out.exists()
    else:
        assert (read(out)[1]["weighted"] is None) == (choice == "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.jsonl"], "no input file"),
        (["--input", "in.csv"], "unknown suffix '.csv'"),
        (["--input", "broken.parquet"], "cannot read"),
        (["--input", "broken.jsonl.gz"], "cannot read"),
        (["--input", "empty.jsonl"], "has no rows"),
        (["--input", "plain"], "not a datasets folder"),
        (["--output", "out.csv"], "unknown suffix '.csv'"),
        (["--output", "nowhere/out.jsonl"], "does not exist"),
        (["--output", "there.jsonl"], "exists"),
        (["--output", "plain", "--overwrite"], "not a saved data set"),
        (["--split", "train"], "one file"),
        (["--reward", "best"], "unknown reward 'best'"),
        (["--reward", "weighted", "--reward", "weighted"], "not distinct"),
        (["--score-column", "a", "--score-column", "b"], "give one for each"),
        (["--score-column", "id"], "already has the columns ['id']"),
        (["--prompt-column", "question"], "no column 'question'"),
        (["--prompt", "rubric"], "no column 'criteria'"),
        (["--prompt", "mine.yaml"], "no judge prompt"),
        (["--prompt", "bad.yaml"], "bad.yaml: unknown keys ['lables']"),
        (["--reward", "verifier", "--prompt", "weighted"], "values 0 and 1"),
        (["--reward-option", "output"], "expected key=value"),
        (["--reward-option", "verifier.output=p"], "reward.key=value"),
        (["--reward-option", "colour=blue"], "colour"),
        (["--reward-option", "clip=[0,"], "--reward-option 'clip=[0,'"),
        (["--reward-option", "question="], "no value; write null for none"),
        (["--reward-option", "scale=abc"], "scale is 'abc', not a number"),
        (["--reward", "verifier:output=log_odds"], "`--reward-option verifier.output=log_odds`"),
        (["--on-overflow", "cut"], "on_overflow"),
        (["--dtype", "float3"], "unknown dtype"),
        (["--device", "warp"], "warp"),
        (["--judge", "plain"], "judge 'plain': "),
        (["--limit", "0"], "limit"),
        (["--colour", "blue"], "--colour"),
    ],
)
def test_user_errors_end_with_2_and_a_message(tmp_path, score, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", ROWS)
    (tmp_path / "in.csv").write_text("prompt,completion\na,b\n")
    (tmp_path / "bad.yaml").write_text("kind: label\nbody: '{{ prompt }}'\nlables: {}\n")
    (tmp_path / "broken.parquet").write_text("no parquet")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b"a\n" * 999)[:-9])
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "there.jsonl").write_text("precious")
    (tmp_path / "plain").mkdir()
    before = sorted(os.listdir(tmp_path))
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    defaults = {"--input": "in.jsonl", "--output": "out.jsonl"}
    result = score(*[x for k, v in defaults.items() if k not in given for x in (k, v)], *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "there.jsonl").read_text() == "precious"


def test_unknown_column_names_those_that_exist(tmp_path, score):
    source = write(tmp_path / "in.jsonl", ROWS)
    result = score("--input", source, "--output", tmp_path / "o.jsonl", "--completion-column", "answer")
    assert "['prompt', 'completion', 'id', 'tags']" in result.output and "--completion-column" in result.output


def test_a_late_row_that_holds_the_score_column_loses_nothing(tmp_path, score):
    rows = [*ROWS * 30, {"prompt": "p", "completion": "c", "weighted": 3}]
    source = write(tmp_path / "in.jsonl", rows)
    result = score("--input", source, "--output", tmp_path / "out.jsonl", "--batch-size", 8)
    assert result.exit_code == 2 and "already" in result.output and os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize("target", FORMATS)
def test_a_failed_run_leaves_the_old_output_and_nothing_else(tmp_path, score, monkeypatch, target):
    source = write(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "out" / target
    out.parent.mkdir()
    save(out, ROWS[:1])
    real, calls = HFJudge.read, []

    def fails_later(self, *arguments):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the accelerator fell over")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(HFJudge, "read", fails_later)
        result = score("--input", source, "--output", out, "--overwrite", "--batch-size", 1)
    assert len(calls) == 3 and isinstance(result.exception, RuntimeError) and result.exit_code == 1
    assert read(out) == ROWS[:1] and os.listdir(out.parent) == [target]
    assert score("--input", source, "--output", out, "--overwrite").exit_code == 0
    assert len(read(out)) == len(ROWS) and os.listdir(out.parent) == [target]


def test_a_folder_comes_back_when_it_cannot_be_replaced(tmp_path, score, monkeypatch):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out"
    save(out, ROWS[:1])
    real = os.replace

    def refuses_the_new_one(a, b):
        if Path(a).name == "folder":
            raise OSError("disk gone")
        return real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuses_the_new_one)
        assert score("--input", source, "--output", out, "--overwrite").exit_code == 2
    assert read(out) == ROWS[:1] and sorted(os.listdir(tmp_path)) == ["in.jsonl", "out"]


def test_input_can_be_its_own_output(tmp_path, score):
    for name in FORMATS:
        path = save(tmp_path / name, ROWS)
        assert score("--input", path, "--output", path, "--overwrite").exit_code == 0
        assert [r["id"] for r in read(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path, judge, number):
    source = write(tmp_path / "in.jsonl", ROWS * 4000)
    program = "from latent_rewards.cli.main import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "score", "--judge", judge, "--input", str(source), "--output",
         str(tmp_path / "out.jsonl"), "--batch-size", "1", "--device", "cpu"],
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores Ctrl-C
    )  # fmt: skip
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not list(tmp_path.glob(".out.jsonl.*/out.jsonl")):
        time.sleep(0.1)
    assert list(tmp_path.glob(".out.jsonl.*")), "it never began to write"
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_nothing_scored_is_1_and_never_replaces_an_output(tmp_path, score):
    source = write(tmp_path / "in.jsonl", ["{", {"prompt": None, "completion": None}])
    out = tmp_path / "out.jsonl"
    result = score("--input", source, "--output", out)
    assert result.exit_code == 1 and "nothing could be scored" in result.output and len(read(out)) == 2
    out.write_text("precious")
    result = score("--input", source, "--output", out, "--overwrite")
    assert result.exit_code == 1 and out.read_text() == "precious" and "left as it was" in result.output
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("name", ["big.jsonl", "big.parquet"])
def test_chunks_are_read_as_they_are_wanted(tmp_path, name):
    path = save(tmp_path / name, ROWS * 2000)
    source = open_source(str(path))
    assert source.total == 10_000
    chunks = source.chunks(7)
    assert len(next(chunks).rows) == 7
    assert sum(len(c.rows) for c in chunks) == 9_993


@pytest.mark.parametrize("name", ["big.jsonl", "big.parquet"])
def test_memory_does_not_grow_with_rows(tmp_path, name):
    def peak(n):
        path = save(tmp_path / f"{n}.{name}", [{"prompt": f"{i} " * 50, "completion": "x"} for i in range(n)])
        source, pool = open_source(str(path)), pa.default_memory_pool()
        tracemalloc.start()
        arrow = 0
        with open_output(tmp_path / f"out.{n}.{name}", source, ["s"]) as out:
            for chunk in source.chunks(64):
                out(chunk, {"s": [0.0] * len(chunk.rows)})
                arrow = max(arrow, pool.bytes_allocated())
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python + arrow

    assert peak(40_000) < 1.6 * peak(10_000)


def test_a_hub_data_set_is_asked_for_with_config_and_split(tmp_path, score, monkeypatch, expected):
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        if options["split"] == "none":
            raise ValueError("Unknown split")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    out = tmp_path / "out.jsonl"
    result = score("--input", "org/name:config", "--split", "train", "--output", out)
    assert result.exit_code == 0 and asked == [(("org/name", "config"), {"split": "train"})]
    np.testing.assert_allclose([r["weighted"] for r in read(out)], expected, atol=1e-5)
    result = score("--input", "org/name", "--split", "none", "--output", tmp_path / "b.jsonl")
    assert result.exit_code == 2 and "Unknown split" in result.output


def test_version_and_prompts():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output.startswith("latent-rewards ")
    result = CliRunner().invoke(app, ["prompts"])
    assert result.exit_code == 0 and {x.split()[0] for x in result.output.splitlines()} >= {"weighted", "verifier"}


def test_probe_train_on_ratings_says_which_objective_to_take(tmp_path):
    rows = [{"prompt": f"Q{i}?", "response": "x", "score": i} for i in range(5)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(
        app, ["probe", "train", str(tmp_path / "r.jsonl"), "--judge", "never loaded", "--out", str(tmp_path / "p")]
    )
    assert result.exit_code == 2 and "needs pairs" in result.output and "'regression' or 'ordinal'" in result.output
