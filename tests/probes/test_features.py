"""Features on disk: what is stored is what the judge says, resumable, and never mixed up."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latent_rewards import JudgePrompt, Need, Request
from latent_rewards.files.seal import sealed
from latent_rewards.probes.collect import collect_features
from latent_rewards.probes.examples import (
    Example,
    fingerprint,
    join_examples,
    list_examples,
    pair_examples,
    prompt_group,
    rating_examples,
    strong_weak_examples,
)
from latent_rewards.probes.features import Features

PROMPT = JudgePrompt.load("weighted")


@pytest.fixture(scope="module")
def judge(make_judge):
    return make_judge("llama", "digits", max_length=1200)


@pytest.fixture(scope="module")
def examples():
    pairs = [{"prompt": f"Question {i}?", "chosen": f"Good answer {i}", "rejected": "bad " * (i + 1)} for i in range(5)]
    return join_examples(pair_examples(pairs, "one"), pair_examples(pairs[:2], "two"), [Example("Q", "A", 0.5)])


def test_states_are_the_judges(judge, examples, tmp_path):
    features = collect_features(judge, PROMPT, examples, [1, -1], folder=tmp_path, dtype="float32", shard_rows=4)
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in examples]
    reading = judge.read([Request(PROMPT, rows, Need(labels=True, hidden=frozenset({1, 3})))])[0]
    assert features.info.layers == (1, 3) and len(features) == 15
    np.testing.assert_allclose(features.states([1]), reading.hidden[1].numpy(), rtol=1e-4, atol=1e-5)
    both = np.concatenate([reading.hidden[1].numpy(), reading.hidden[3].numpy()], axis=1)
    np.testing.assert_allclose(features.states([1, 3]), both, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.column("label_logprobs"), reading.label_logprobs.numpy(), atol=1e-4)
    np.testing.assert_array_equal(features.column("pair"), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, -1])
    assert features.info.sources == ("", "one", "two")
    np.testing.assert_array_equal(features.column("source"), [1] * 10 + [2] * 4 + [0])
    assert features.column("length")[0] == len("Good answer 0")


def test_a_broken_run_goes_on_where_it_stopped(judge, examples, tmp_path):
    whole = collect_features(judge, PROMPT, examples, [2], folder=tmp_path, dtype="float32", shard_rows=4)
    before = whole.states([2])
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="1 of 4 shards are missing"):
        Features(tmp_path)
    judge.forget()
    read = judge.rows_read
    again = collect_features(judge, PROMPT, examples, [2], folder=tmp_path, dtype="float32", shard_rows=4)
    assert judge.rows_read - read == 4
    np.testing.assert_allclose(again.states([2]), before, atol=1e-5)


def test_each_rank_reads_its_share(judge, examples, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        options = {"folder": tmp_path, "shard_rows": 4, "patience": 0.2}
        if rank:
            with pytest.raises(TimeoutError, match="2 of 4 shards are missing and no other rank has written one"):
                collect_features(judge, PROMPT, examples, [2], **options)
        else:
            assert len(collect_features(judge, PROMPT, examples, [2], **options)) == 15


def test_accelerate_launch_gives_what_one_process_gives(folder, tmp_path):
    script = Path(__file__).parents[1] / "launch_features.py"
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(script), folder, str(tmp_path / "two")),
    ]
    paths = os.pathsep.join(filter(None, [str(script.parent.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    runpy.run_path(str(script))["collect"](folder, str(tmp_path / "one"))
    one, two = Features(tmp_path / "one"), Features(tmp_path / "two")
    assert one.info == two.info and len(two) == 22
    for column in ("layer_1", "layer_3", "label_logprobs", "group", "pair", "label", "length"):
        np.testing.assert_array_equal(two.column(column), one.column(column))


@pytest.mark.parametrize("change", ["prompt", "lens", "layers", "data", "dtype"])
def test_a_mismatch_names_both_sides(judge, examples, tmp_path, change):
    collect_features(judge, PROMPT, examples, [1], folder=tmp_path)
    options = {"layers": [2] if change == "layers" else [1], "lens": "raw" if change == "lens" else "normed"}
    options["dtype"] = "float32" if change == "dtype" else "bfloat16"
    prompt = JudgePrompt.load("verifier") if change == "prompt" else PROMPT
    data = examples[:-1] if change == "data" else examples
    with pytest.raises(ValueError, match=r"holds features with .* was expected"):
        collect_features(judge, prompt, data, options.pop("layers"), folder=tmp_path, **options)


def test_check_names_both_sides(judge, make_judge, examples, tmp_path):
    features = collect_features(judge, PROMPT, examples, [1], folder=tmp_path)
    features.check(judge, PROMPT, fingerprint=fingerprint(examples))
    with pytest.raises(ValueError, match=PROMPT.hash):
        features.check(prompt=JudgePrompt.load("verifier"))
    with pytest.raises(ValueError, match=r"with judge .* was expected"):
        features.check(judge=make_judge("qwen2", "digits"))
    with pytest.raises(ValueError, match=r"layers \[1\], not \[2\]"):
        features.states([2])


def test_unreadable_rows_are_marked(make_judge, tmp_path):
    judge = make_judge("llama", "digits", max_length=400)
    rows = [Example("Q", "short", 1.0), Example("Q", "long " * 500, 0.0)]
    features = collect_features(judge, PROMPT, rows, [1], folder=tmp_path)
    np.testing.assert_array_equal(features.column("read"), [True, False])
    assert np.isnan(features.states([1])[1]).all()


def test_broken_files(judge, examples, tmp_path):
    features = collect_features(judge, PROMPT, examples, [1], folder=tmp_path)
    shard = tmp_path / "shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="corrupt or cut short"):
        features.states([1])
    shard.write_bytes(whole)
    meta = json.loads((tmp_path / "features.json").read_text())
    (tmp_path / "features.json").write_text(json.dumps(meta | {"fingerprint": "other"}))
    with pytest.raises(ValueError, match="damaged or edited after it was saved"):
        Features(tmp_path)
    del meta["sha256"]
    (tmp_path / "features.json").write_text(json.dumps(meta | {"fingerprint": "other"}))
    with pytest.raises(ValueError, match="another data set"):
        Features(tmp_path).states([1])
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(ValueError, match="not a description of features"):
        Features(tmp_path)
    with pytest.raises(FileNotFoundError, match="collect features there first"):
        Features(tmp_path / "nothing")


def test_examples_of_every_kind():
    lists = list_examples([{"prompt": "p", "responses": ["a", "b", "c"], "gold": [2, 1, 0]}], "l")
    assert [(e.label, e.pair) for e in lists] == [(2, 0), (1, 0), (0, 0)]
    rated = rating_examples([{"prompt": "p", "response": "a", "score": 4}])
    assert rated[0].label == 4 and rated[0].pair == -1
    made = strong_weak_examples(["p", "q"], lambda ps: [p + "!" for p in ps], lambda ps: ["same!", "q!"])
    assert [(e.completion, e.label) for e in made] == [("p!", 1.0), ("same!", 0.0)]
    assert prompt_group("What  is\nThis?") == prompt_group("what is this?") != prompt_group("what is that?")


def test_a_judge_that_reads_otherwise_does_not_go_on(examples, make_judge, tmp_path):
    collect_features(make_judge(max_length=1200), PROMPT, examples, [1], folder=tmp_path, shard_rows=4)
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"reads otherwise; changed: max_length: 1200 -> 900$"):
        collect_features(make_judge(max_length=900), PROMPT, examples, [1], folder=tmp_path, shard_rows=4)
    collect_features(make_judge(max_length=1200), PROMPT, examples, [1], folder=tmp_path, shard_rows=4)
    meta = json.loads((tmp_path / "features.json").read_text())
    del meta["reader"], meta["sha256"]
    (tmp_path / "features.json").write_text(json.dumps(sealed(meta)))
    collect_features(make_judge(max_length=900), PROMPT, examples, [1], folder=tmp_path, shard_rows=4)
