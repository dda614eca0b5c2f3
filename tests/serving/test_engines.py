"""Judges behind vLLM, SGLang and llama.cpp: exact labels over their HTTP formats; the real engines where installed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from contracts import check_judge
from engines import EngineDouble, running
from servers import free_port

from latent_rewards import (
    CrossLayerReward,
    HFJudge,
    JudgePrompt,
    LikelihoodReward,
    LikertReward,
    Need,
    ProbabilityWeightedReward,
    Request,
)
from latent_rewards.data import open_ended
from latent_rewards.judge.hf import Judge
from latent_rewards.serving import ServerJudge

WEIGHTED = JudgePrompt.load("weighted")
LABELS = Need(labels=True)
ROWS = [
    {"prompt": "Name a prime.", "completion": text}
    for text in ("Seven.", "Eight <|im_end|> 10", "Seven.", "", "prime number 13")
]
ENGINES = ["vllm", "sglang", "llamacpp"]


@pytest.fixture(scope="module")
def judge(folder: str) -> HFJudge:
    return HFJudge(folder, dtype="float32", device="cpu")


def connect(url: str, engine: str, judge: HFJudge, **options: Any) -> ServerJudge:
    return ServerJudge(url, engine=engine, tokenizer=judge.model_name, deadline=30, **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_label_probabilities_equal_the_judge_s_own(engine: str, judge: HFJudge) -> None:
    double = EngineDouble(judge)
    with running(double) as url:
        remote = connect(url, engine, judge)
        assert isinstance(remote, Judge) and remote.capabilities == {"labels"} | (
            {"target"} if engine == "vllm" else set()
        )
        assert remote.name == ("tiny-F16" if engine == "llamacpp" else "tiny")
        shorter = connect(url, engine, judge, max_length=50)
        assert len({remote.fingerprint, shorter.fingerprint, judge.fingerprint}) == 3
        got, want = remote.read([Request(WEIGHTED, ROWS, LABELS)])[0], judge.read([Request(WEIGHTED, ROWS, LABELS)])[0]
        torch.testing.assert_close(got.label_logprobs, want.label_logprobs, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(got.label_mass, want.label_mass, rtol=1e-4, atol=1e-6)
        assert torch.equal(got.label_logprobs[0], got.label_logprobs[2]), "equal texts are read once"
        check_judge(remote, WEIGHTED, ROWS)
        reward = ProbabilityWeightedReward(remote)
        prompts, completions = [r["prompt"] for r in ROWS], [r["completion"] for r in ROWS]
        want_scores = ProbabilityWeightedReward(judge).score(prompts, completions)
        assert reward.score(prompts, completions) == pytest.approx(want_scores, rel=1e-5)
        copy = pickle.loads(pickle.dumps(reward))
        assert copy.score(prompts, completions) == pytest.approx(want_scores, rel=1e-5)


def test_targets_equal_the_judge_s_own(judge: HFJudge) -> None:
    prompt, rows = JudgePrompt.load("likelihood_reference"), [{**row, "reference": "13 <|im_end|>"} for row in ROWS]
    rows.append({**ROWS[0], "reference": "A prime number is 7."})
    double = EngineDouble(judge)
    with running(double) as url:
        remote = connect(url, "vllm", judge)
        got, want = (j.read([Request(prompt, rows, Need(target=True))])[0] for j in (remote, judge))
        torch.testing.assert_close(got.target_logprobs, want.target_logprobs, rtol=0, atol=5e-5, equal_nan=True)
        ((path, body),) = [r for r in double.requests if isinstance(r[1], dict) and "prompt_logprobs" in r[1]]
        assert path == "/v1/completions" and body["max_tokens"] == 1 and len(body["prompt"]) == 5, "equal texts once"
        columns = {"reference": [row["reference"] for row in rows]}
        texts = [r["prompt"] for r in rows], [r["completion"] for r in rows]
        scores = [LikelihoodReward(j, of="reference", baseline=True).score(*texts, **columns) for j in (remote, judge)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        short = connect(url, "vllm", judge, max_length=40)
        (reading,) = short.read([Request(prompt, rows, Need(target=True))])
        assert bool(reading.target_logprobs.isnan().all()) and "at most" in str(reading.reasons[0])
    for engine in ("sglang", "llamacpp"):
        with running(EngineDouble(judge)) as url:
            other = connect(url, engine, judge)
            with pytest.raises(ValueError, match=r"needs \['target'\], which judge .* cannot give"):
                LikelihoodReward(other)
            with pytest.raises(ValueError, match=r"not asked for the log-probabilities .*or use an HFJudge"):
                other.read([Request(prompt, rows, Need(target=True))])


def test_what_each_engine_is_sent(judge: HFJudge) -> None:
    """The wire formats, so that a change is seen: token ids in, no text; one request per node of the label trie."""
    trie = judge.trie(WEIGHTED)
    text = judge.encoder.encode([WEIGHTED.render(ROWS[0])])[0].ids
    sent: dict[str, list[Any]] = {}
    for engine in ENGINES:
        double = EngineDouble(judge)
        with running(double) as url:
            connect(url, engine, judge).read([Request(WEIGHTED, ROWS[:1], LABELS)])[0]
        sent[engine] = [
            body for path, body in double.requests if path in ("/v1/completions", "/v1/score", "/completion")
        ]
    prompts = [[*text, *context] for context in trie.contexts]
    probe, *reads = sent["vllm"]
    assert len(probe["prompt"]) == 1 and [r["prompt"] for r in reads] == [[p] for p in prompts]
    assert [r["logprob_token_ids"] for r in reads] == [list(c) for c in trie.children]
    assert all(r["max_tokens"] == 1 and r["return_tokens_as_token_ids"] and r["model"] == "org/tiny" for r in reads)
    assert [[*r["query"], *r["items"][0]] for r in sent["sglang"]] == prompts
    assert [r["label_token_ids"] for r in sent["sglang"]] == [list(c) for c in trie.children]
    assert not any(r["apply_softmax"] or r["item_first"] for r in sent["sglang"])
    assert [r["prompt"] for r in sent["llamacpp"]] == [p for p in prompts for _ in range(sum(
        r["prompt"] == p for r in sent["llamacpp"]))]  # fmt: skip
    assert sent["llamacpp"][0]["n_probs"] == 256 and sent["llamacpp"][0]["cache_prompt"]


def test_many_texts_go_in_several_requests(judge: HFJudge) -> None:
    rows = [{"prompt": "p", "completion": f"{i}"} for i in range(7)]
    double = EngineDouble(judge)
    with running(double) as url:
        got = connect(url, "vllm", judge, batch=3).read([Request(WEIGHTED, rows, LABELS)])[0]
    torch.testing.assert_close(
        got.label_logprobs, judge.read([Request(WEIGHTED, rows, LABELS)])[0].label_logprobs, rtol=1e-5, atol=1e-4
    )
    sizes = [len(body["prompt"]) for path, body in double.requests if path == "/v1/completions"]
    assert sorted(sizes[1:4]) == [1, 3, 3]


def test_an_old_vllm_that_ignores_chosen_ids_is_noticed(judge: HFJudge, caplog: pytest.LogCaptureFixture) -> None:
    """Labels outside the most likely tokens: no score while they may hold much, else counted as 0."""
    double = EngineDouble(judge, chosen_ids=False)
    want = judge.read([Request(WEIGHTED, ROWS, LABELS)])[0].label_logprobs
    with running(double) as url:
        strict = connect(url, "vllm", judge)
        got = strict.read([Request(WEIGHTED, ROWS, LABELS)])[0]
        assert "does not give log-probabilities of chosen ids" in caplog.text
        assert torch.isnan(got.label_logprobs).all() and all("may hold" in str(r) for r in got.reasons)
        assert all("logprob_token_ids" not in body for path, body in double.requests[2:])
        loose = (
            connect(url, "vllm", judge, missing_tolerance=1e9).read([Request(WEIGHTED, ROWS, LABELS)])[0].label_logprobs
        )
        found = torch.isfinite(loose)
        assert found.any() and not found.all()
        assert (loose[found] <= want[found] + 1e-4).all(), "what is reported is a lower bound"
        double.max_logprobs = 10_000
        full = (
            connect(url, "vllm", judge, top_logprobs=10_000).read([Request(WEIGHTED, ROWS, LABELS)])[0].label_logprobs
        )
        torch.testing.assert_close(full, want, rtol=1e-5, atol=1e-4)


def test_llamacpp_asks_for_more_tokens_until_all_labels_are_found(judge: HFJudge) -> None:
    double = EngineDouble(judge)
    with running(double) as url:
        got = connect(url, "llamacpp", judge, top_logprobs=4).read([Request(WEIGHTED, ROWS[:1], LABELS)])[0]
    torch.testing.assert_close(
        got.label_logprobs, judge.read([Request(WEIGHTED, ROWS[:1], LABELS)])[0].label_logprobs, rtol=1e-5, atol=1e-4
    )
    asked = [body["n_probs"] for path, body in double.requests if path == "/completion"]
    assert asked[:2] == [4, 64]


def test_limits_errors_and_what_engines_cannot_give(judge: HFJudge) -> None:
    with running(EngineDouble(judge)) as url:
        remote = connect(url, "vllm", judge, max_length=600)
        rows = [ROWS[0], {"prompt": "p", "completion": "word " * 900}]
        got = remote.read([Request(WEIGHTED, rows, LABELS)])[0]
        assert got.reasons[0] is None and "reads at most" in str(got.reasons[1])
        assert torch.isnan(got.label_logprobs[1]).all() and not torch.isnan(got.label_logprobs[0]).any()
        with pytest.raises(ValueError, match="row 1: prompt 'weighted' needs 'completion'"):
            remote.read([Request(WEIGHTED, [ROWS[0], {"prompt": "p"}], LABELS)])[0]
        with pytest.raises(ValueError, match=r"needs \['layer_logits'\]"):
            CrossLayerReward(remote)
        with pytest.raises(ValueError, match="cannot generate"):
            LikertReward(remote)
        with pytest.raises(ValueError, match=r"serves .*not 'other'"):
            connect(url, "vllm", judge, model="other").read([Request(WEIGHTED, ROWS, LABELS)])[0]
    with pytest.raises(ValueError, match="unknown engine 'tgi'"):
        ServerJudge("http://127.0.0.1:1", engine="tgi")
    with pytest.raises(ValueError, match="give the judge's tokenizer"):
        ServerJudge("http://127.0.0.1:1", engine="vllm")
    with pytest.raises(ValueError, match="for other engines"):
        ServerJudge("http://127.0.0.1:1", tokenizer="x")


# ---- the real engines -----------------------------------------------------------------------------------------------


def wait_for(url: str, process: Any, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(url, trust_env=False, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def answers(n: int) -> list[dict[str, str]]:
    """Built-in answers, four to a prompt, besides the odd ones above."""
    found = [{"prompt": r["prompt"], "completion": c} for r in open_ended() for c in r["responses"][:4]]
    return [*ROWS, *found[:n]]


def check_engine(remote: ServerJudge, judge: HFJudge, rows: list[Any], *, nats: float, mass: float) -> None:
    """Label log-probabilities and label mass of an engine against the judge in process; prints what they differ by."""
    got, want = remote.read([Request(WEIGHTED, rows, LABELS)])[0], judge.read([Request(WEIGHTED, rows, LABELS)])[0]
    assert got.reasons == (None,) * len(rows)
    off = (got.label_logprobs - want.label_logprobs).abs()
    expected = [(r.label_logprobs.softmax(-1) @ torch.arange(11.0)) for r in (got, want)]
    print(
        f"\n{remote.engine}, {len(rows)} rows, in process {judge.blocks.model.dtype}: label log-probabilities "
        f"differ by at most {off.max():.2g} nats (mean {off.mean():.2g}), label mass by at most "
        f"{(got.label_mass / want.label_mass - 1).abs().max():.2g} of itself, expected ratings by at most "
        f"{(expected[0] - expected[1]).abs().max():.2g}"
    )
    torch.testing.assert_close(got.label_logprobs, want.label_logprobs, rtol=0, atol=nats)
    torch.testing.assert_close(got.label_mass, want.label_mass, rtol=mass, atol=0)


@contextlib.contextmanager
def engine_process(command: list[str], log: Path, seconds: float) -> Iterator[str]:
    """Another project's server, in an environment of its own; its URL once it is healthy."""
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=out, stderr=out, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log, seconds)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("llama-server"), reason="llama-server is not on the PATH")
def test_llama_server(embedded: HFJudge, tmp_path: Path) -> None:
    """llama.cpp's own server on an F16 file of the embedded judge, against the judge in float32."""
    from latent_rewards.engine.embedded import embedded_source

    gguf, folder = tmp_path / "judge-F16.gguf", embedded.blocks.model.name_or_path
    quantize = ["llama-quantize", "--allow-requantize", str(embedded_source()), str(gguf), "F16"]
    subprocess.run(quantize, check=True, capture_output=True)
    command = ["llama-server", "-m", str(gguf), "-c", "4096", "-np", "1", "-t", "1", "--no-webui"]
    with engine_process(command, tmp_path / "log", 120) as url:
        remote = ServerJudge(url, engine="llamacpp", tokenizer=folder)
        check_engine(remote, embedded, answers(16), nats=0.05, mass=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("VLLM"), reason="VLLM names neither a vllm program nor a python that has it")
@pytest.mark.parametrize(("dtype", "nats", "mass"), [("float32", 1e-3, 1e-3), ("bfloat16", 0.5, 0.3)])
def test_vllm(embedded: HFJudge, tmp_path: Path, dtype: str, nats: float, mass: float) -> None:
    """vLLM's own server on the embedded judge, against the judge in float32."""
    model, program = embedded.blocks.model.name_or_path, os.environ["VLLM"]
    module = ["-m", "vllm.entrypoints.openai.api_server", "--model"]  # vllm-cpu's own `vllm` does not start
    start = [program, *module] if Path(program).name.startswith("python") else [program, "serve"]
    options = ["--dtype", dtype, "--max-model-len", "2048", "--enforce-eager"]
    with engine_process([*start, model, *options], tmp_path / "log", 500) as url:
        remote = ServerJudge(url, engine="vllm", tokenizer=model)
        rows = answers(16)
        check_engine(remote, embedded, rows, nats=nats, mass=mass)
        if dtype != "float32":
            check_engine(remote, HFJudge("embedded", dtype=dtype, device="cpu"), rows, nats=nats, mass=mass)
        assert remote._backend.chosen_ids, "asked for the labels' own ids"
        prompt, need = JudgePrompt.load("likelihood_completion"), Need(target=True)
        told = [row for row in rows if row["completion"].strip()]
        far, near = (j.read([Request(prompt, told, need)])[0].target_logprobs for j in (remote, embedded))
        assert far is not None and near is not None
        gap, mean = (far - near).abs().nan_to_num(), (far.nanmean(1) - near.nanmean(1)).abs()
        print(f"{dtype}: {len(told)} targets, tokens to {gap.max():.1e} nats, means to {mean.max():.1e}")
        assert torch.equal(far.isnan(), near.isnan()) and gap.max() < 10 * nats and mean.max() < nats
