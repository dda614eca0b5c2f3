"""`ServerJudge`: every reward on it unchanged, bit for bit; outages, forks, threads, children without a GPU."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import check_judge, columns_for, options_for
from engines import EngineDouble, running
from servers import Server, serving, start, stop, wait_ready

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import (
    EnsembleReward,
    HFJudge,
    JudgePrompt,
    Need,
    ProbabilityWeightedReward,
    VerifierReward,
    build_reward,
)
from latent_rewards.judge.hf import Judge
from latent_rewards.judge.reading import Request
from latent_rewards.rewards.build import REWARDS
from latent_rewards.serving import JudgeServerError, ServerJudge
from latent_rewards.serving.client import RewardClient
from latent_rewards.serving.transport import Transport

PROMPTS = ["Name a prime.", "Say hello.", "Name a prime."]
COMPLETIONS = ["Seven.", [{"role": "assistant", "content": "Hello <|im_end|> there"}], ""]
ROWS = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
WEIGHTED = JudgePrompt.load("weighted")


@pytest.fixture(scope="module")
def server(folder: str, tmp_path_factory: Any) -> Any:
    log = tmp_path_factory.mktemp("client") / "log"
    options = ("--reward", "weighted", "--reward", "verifier", "--max-rows", "4")
    with serving(folder, log, *options, LATENT_REWARDS_TOKEN="secret") as it:
        yield it


@pytest.fixture(scope="module")
def local(folder: str) -> HFJudge:
    return HFJudge(folder, dtype="float32", device="cpu")


@pytest.fixture
def remote(server: Server) -> ServerJudge:
    return ServerJudge(server.url, token="secret", deadline=60)


def same(a: Any, b: Any) -> bool:
    return np.asarray(a, dtype=np.float64).tobytes() == np.asarray(b, dtype=np.float64).tobytes()


def test_it_is_a_judge(remote: ServerJudge, local: HFJudge) -> None:
    assert isinstance(remote, Judge)
    assert (remote.name, remote.revision, remote.n_layers) == (local.name, local.revision, local.n_layers)
    assert remote.fingerprint == local.fingerprint, "what was kept of one serves the other"
    assert remote.capabilities == local.capabilities
    check_judge(remote, WEIGHTED, ROWS)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_gives_the_same_bits_as_in_process(name: str, remote: ServerJudge, folder: str) -> None:
    local = HFJudge(folder, dtype="float32", device="cpu")
    short = {"max_new_tokens": 6} if name.startswith("likert") else {}
    near = build_reward(name, local, **options_for(name, local) | short)
    far = build_reward(name, remote, **options_for(name, local) | short)
    columns = columns_for(near.prompt, len(ROWS))
    here, there = near.score(PROMPTS, COMPLETIONS, **columns), far.score(PROMPTS, COMPLETIONS, **columns)
    if name in ("contrastive", "pairwise", "rubric_list", "panel"):  # more texts than --max-rows: several requests
        np.testing.assert_allclose(here, there, atol=1e-4)
    else:
        assert same(here, there)


def test_a_jury_of_one_here_and_one_behind_a_server(remote: ServerJudge, folder: str) -> None:
    near = VerifierReward(HFJudge(folder, dtype="float32", device="cpu"))
    far = ProbabilityWeightedReward(remote)
    jury = EnsembleReward([near, far], how="mean", location=[0.5, 5.0], scales=[0.25, 2.0])
    apart = [(near.score(PROMPTS, COMPLETIONS) - 0.5) / 0.25, (far.score(PROMPTS, COMPLETIONS) - 5.0) / 2.0]
    np.testing.assert_allclose(jury.score(PROMPTS, COMPLETIONS), np.mean(apart, 0), rtol=1e-5)


def test_all_readings_are_exact(remote: ServerJudge, folder: str) -> None:
    need = Need(True, frozenset({1, -1}), "raw", frozenset({"raw", "normed"}))
    far, near = (
        remote.read([Request(WEIGHTED, ROWS, need)])[0],
        HFJudge(folder, dtype="float32", device="cpu").read([Request(WEIGHTED, ROWS, need)])[0],
    )
    assert torch.equal(far.label_logprobs, near.label_logprobs) and torch.equal(far.label_mass, near.label_mass)
    assert set(far.hidden) == {1, -1} and all(torch.equal(far.hidden[k], near.hidden[k]) for k in far.hidden)
    assert all(torch.equal(far.layer_label_logits[k], near.layer_label_logits[k]) for k in ("raw", "normed"))


def test_targets_are_exact_and_their_errors_name_the_row(remote: ServerJudge, folder: str) -> None:
    prompt, need = JudgePrompt.load("likelihood_reference"), Need(target=True)
    rows = [{**row, "reference": text} for row, text in zip(ROWS, ("7", "a longer answer", "7"), strict=False)]
    far, near = (
        j.read([Request(prompt, rows, need)])[0] for j in (remote, HFJudge(folder, dtype="float32", device="cpu"))
    )
    assert far.target_logprobs is not None and near.target_logprobs is not None and far.label_logprobs is None
    assert same(far.target_logprobs.numpy(), near.target_logprobs.numpy())
    with pytest.raises(ValueError, match="row 1: 'reference' is empty"):
        remote.read([Request(prompt, [rows[0], {**rows[1], "reference": " "}], need)])
    with pytest.raises(ValueError, match="has no target"):
        remote.check(WEIGHTED, need)


def test_own_prompts_travel(remote: ServerJudge, local: HFJudge, tmp_path: Path) -> None:
    path = tmp_path / "concise.yaml"
    path.write_text(
        "kind: label\nsystem: You judge.\nbody: |\n  {{ prompt }}\n  {% if hint %}({{ hint }}){% endif %}\n"
        "  {{ completion }}\n  Short? Yes or No.\nlabels: {'yes': 1, 'no': 0}\nspellings: {'yes': ['Yes', ' yes']}\n"
        "optional: [hint]\n"
    )
    hints = {"hint": ["be brief", None, "x"]}
    near, far = (build_reward("verifier", j, prompt=path) for j in (local, remote))
    assert same(near.score(PROMPTS, COMPLETIONS, **hints), far.score(PROMPTS, COMPLETIONS, **hints))
    path.write_text(path.read_text().replace("[' yes']", "['Yes']").replace("'no': 0", "'Yes': 0"))
    with pytest.raises(ValueError, match="share the spelling"):
        build_reward("verifier", remote, prompt=path)
    with pytest.raises(ValueError, match=r"layers 1\.\.3; layer 9 was asked for"):
        remote.check(WEIGHTED, Need(hidden=frozenset({9})))


def test_rewards_share_one_request_and_the_same_rows_cost_nothing(remote: ServerJudge, local: HFJudge) -> None:
    weighted, layers = build_reward("weighted", remote), build_reward("cross_layer", remote)
    for prompts in (COMPLETIONS, PROMPTS):
        remote.forwards = 0
        for reward in (weighted, layers):
            reward(prompts, COMPLETIONS, trainer_state=None)
    assert remote.forwards == 1
    reads = [Request(weighted.prompt, ROWS, weighted.need), Request(JudgePrompt.load("verifier"), ROWS, weighted.need)]
    assert [len(r) for r in remote.read(reads)] == [3, 3] and remote.forwards == 2


def test_more_rows_than_one_request_may_hold(remote: ServerJudge, local: HFJudge) -> None:
    rows = [{"prompt": "p", "completion": f"{i}"} for i in range(11)]
    got, want = (j.read([Request(WEIGHTED, rows, Need(labels=True))])[0] for j in (remote, local))
    torch.testing.assert_close(got.label_logprobs, want.label_logprobs, rtol=1e-5, atol=1e-5)
    rows[9] = {"prompt": "p", "completion": [{"role": "user", "content": 3}]}
    with pytest.raises(ValueError, match="row 9: 'completion' has a message whose content is int"):
        remote.read([Request(WEIGHTED, rows, Need(labels=True))])[0]
    rows[9] = {"prompt": "p", "completion": "x" * 400_001}
    with pytest.raises(ValueError, match="row 9: 'completion' has 400001 characters"):
        remote.read([Request(WEIGHTED, rows, Need(labels=True))])[0]
    assert len(remote.read([Request(WEIGHTED, [], Need(labels=True))])[0]) == 0


def test_a_wrong_token_is_told_at_once(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(JudgeServerError, match="401 this server needs a bearer token") as refused:
        build_reward("weighted", ServerJudge(server.url, token="wrong", deadline=60, on_failure="none"))
    assert refused.value.status == 401 and time.monotonic() - started < 20


def score(payload: bytes, queue: Any) -> None:
    """In a child: no GPU, and whatever the parent had open is not ours."""
    reward = pickle.loads(payload)
    queue.put(reward.score(PROMPTS, COMPLETIONS))


def score_here(reward: Any, queue: Any) -> None:
    """In a forked child: what the parent had open is not ours."""
    import faulthandler

    faulthandler.dump_traceback_later(60, exit=True)
    queue.put(reward.score(PROMPTS, COMPLETIONS))
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_workers_and_spawned_children(
    method: str, remote: ServerJudge, local: HFJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("LATENT_REWARDS_TOKEN", "secret")  # which no pickle holds
    reward = build_reward("weighted", remote)
    want = reward.score(PROMPTS, COMPLETIONS)  # the connection is open now, and must not be shared
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(400, 400) @ torch.randn(400, 400)  # the parent has threads, which a forked child has not
    torch.randn(1_000_000).exp().sum()
    torch.set_num_threads(before)
    remote.forget()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    if method == "fork":
        children = [context.Process(target=score_here, args=(reward, queue)) for _ in range(3)]
    else:
        children = [context.Process(target=score, args=(pickle.dumps(reward), queue))]
    for child in children:
        child.start()
    here = reward.score(PROMPTS, COMPLETIONS)
    got = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
    for values in (*got, here):
        np.testing.assert_allclose(values, want, rtol=1e-6)


def test_threads_and_event_loops(server: Server, local: HFJudge) -> None:
    client = RewardClient(server.url, token="secret", reward="weighted", concurrency=8)
    rows = [{"prompt": f"Name prime {i}", "completion": f"{i}"} for i in range(24)]
    want = build_reward("weighted", local).score([r["prompt"] for r in rows], [r["completion"] for r in rows])
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda row: client.score([row])[0], rows))
    np.testing.assert_allclose(got, want, rtol=1e-5)

    async def together() -> list[float]:
        return [x for [x] in await asyncio.gather(*(client.score_async([row]) for row in rows))]

    for _ in range(2):  # a new event loop each time, as notebooks and trainers do
        np.testing.assert_allclose(asyncio.run(together()), want, rtol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
def test_a_loop_for_every_batch_leaves_no_socket_open(server: Server) -> None:
    client = RewardClient(server.url, token="secret", reward="weighted")
    asyncio.run(client.score_async(ROWS[:1]))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(12):  # ms-swift 4.6 calls `asyncio.run` for every batch
        asyncio.run(client.score_async(ROWS[:1]))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_whoever_is_cancelled_or_closed_does_not_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        transport = Transport(f"http://127.0.0.1:{silent.getsockname()[1]}", deadline=60)

        async def impatient() -> None:
            await asyncio.wait_for(transport.request_async("GET", "/health"), 0.2)

        async def closed() -> None:
            asking = asyncio.create_task(transport.request_async("GET", "/health"))
            await asyncio.sleep(0.2)
            transport.close()
            await asking

        started = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(impatient())
        ours = transport._ours
        for _ in range(100):
            if not (left := asyncio.all_tasks(ours.loop)):
                break
            time.sleep(0.05)
        assert not left, "the request is given up, too"
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(closed())
        assert time.monotonic() - started < 20
    names = lambda: [t.name for t in threading.enumerate() if t.name == "latent-rewards-http"]  # noqa: E731
    for _ in range(100):
        if len(names()) <= 1:  # that of the module's client, perhaps
            break
        time.sleep(0.05)
    assert len(names()) <= 1


def test_async_rewards_run_side_by_side(remote: ServerJudge, local: HFJudge) -> None:
    twins = [build_reward(name, remote).to_async() for name in ("weighted", "verifier")]

    async def both() -> Any:
        return await asyncio.gather(*(twin(prompts=PROMPTS, completions=COMPLETIONS) for twin in twins))

    for name, got in zip(("weighted", "verifier"), asyncio.run(both()), strict=True):
        np.testing.assert_allclose(got, build_reward(name, local).score(PROMPTS, COMPLETIONS), rtol=1e-5)


# ---- outages --------------------------------------------------------------------------------------------------------


def test_retries_are_for_what_may_pass(local: HFJudge, caplog: pytest.LogCaptureFixture) -> None:
    double = EngineDouble(local)
    with running(double) as url:
        transport = Transport(url, deadline=20)
        double.failures = [503, 429, 502]
        assert transport.request("GET", "/v1/models")["data"] and not double.failures
        assert "503" in caplog.text and "trying again" in caplog.text
        double.failures = [400, 400]
        with pytest.raises(JudgeServerError) as bad:
            transport.request("GET", "/v1/models")
        assert bad.value.status == 400 and len(double.failures) == 1, "not repeated"
        double.failures = [503] * 50
        with pytest.raises(JudgeServerError, match=r"gave up after 3 tries"):
            Transport(url, deadline=20, retries=2).request("GET", "/v1/models")
        started = time.monotonic()
        with pytest.raises(JudgeServerError, match="gave up after"):
            Transport(url, deadline=1.0).request("GET", "/v1/models")
        assert time.monotonic() - started < 5


def test_a_dead_server_is_none_or_an_error_by_setting(folder: str, tmp_path: Path) -> None:
    running_server = start(folder, tmp_path / "log")
    try:
        wait_ready(running_server)
        rewards = {
            how: build_reward("weighted", ServerJudge(running_server.url, deadline=60, on_failure=how))
            for how in ("raise", "none")
        }
        assert not np.isnan(rewards["none"].score(PROMPTS, COMPLETIONS)).any()
    finally:
        running_server.process.kill()
        running_server.process.wait()
    for reward in rewards.values():
        reward.judge.transport.deadline = 1.0
    other = ["a", "b", "c"]
    with pytest.raises(JudgeServerError, match="gave up"):
        rewards["raise"].score(other, COMPLETIONS)
    values, reasons = rewards["none"].score_with_reasons(other, COMPLETIONS)
    assert np.isnan(values).all() and all("ConnectError" in str(r) for r in reasons)
    assert rewards["none"](prompts=other, completions=COMPLETIONS) == [None] * 3


def test_a_server_killed_and_restarted_costs_time_and_nothing_else(folder: str, tmp_path: Path, local: HFJudge) -> None:
    """16 clients at work while the server dies hard and comes back: no error, no wrong answer."""
    rows = [{"prompt": f"Name prime {i % 5}", "completion": f"{i} is it"} for i in range(40)]
    want = build_reward("weighted", local).score([r["prompt"] for r in rows], [r["completion"] for r in rows])
    first = start(folder, tmp_path / "log")
    port = first.url.rsplit(":", 1)[1]
    second: Any = None
    done = threading.Event()
    wrong: list[Any] = []
    counts = {"before": 0, "after": 0}
    try:
        wait_ready(first)
        client = RewardClient(first.url, deadline=120)

        def work(k: int) -> None:
            i = k
            while not done.is_set():
                i = (i + 7) % len(rows)
                try:
                    (got,) = client.score([rows[i]])
                except Exception as err:
                    wrong.append(err)
                    return
                counts["after" if second is not None else "before"] += 1
                if abs(got - want[i]) > 1e-4:
                    wrong.append((i, got, want[i]))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(16)]
        for thread in threads:
            thread.start()
        while counts["before"] < 40:
            time.sleep(0.02)
        first.process.kill()
        first.process.wait()
        second = start(folder, tmp_path / "log", "--port", port)
        wait_ready(second)
        end = time.monotonic() + 90
        while counts["after"] < 80 and time.monotonic() < end:
            time.sleep(0.02)
        done.set()
        for thread in threads:
            thread.join(60)
        assert not wrong and counts["after"] >= 80, (wrong[:3], counts)
    finally:
        done.set()
        for server in filter(None, (first, second)):
            stop(server)


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match="set LATENT_REWARDS_SERVER"):
        ServerJudge()
    with pytest.raises(ValueError, match="starts with http://"):
        ServerJudge("localhost:8077")
    with pytest.raises(ValueError, match="on_failure must be"):
        ServerJudge("http://x", on_failure="zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concurrency >= 1"):
        ServerJudge("http://x", concurrency=0)


def test_rewards_of_trl_s_command_line_can_use_a_server(server: Server, local: HFJudge, clean_env: Any) -> None:
    from latent_rewards import env

    clean_env.setenv("LATENT_REWARDS_SERVER", server.url)
    clean_env.setenv("LATENT_REWARDS_TOKEN", "secret")
    got = env.weighted(prompts=PROMPTS, completions=COMPLETIONS)
    np.testing.assert_allclose(got, build_reward("weighted", local).score(PROMPTS, COMPLETIONS), rtol=1e-6)
