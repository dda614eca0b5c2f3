"""How a judge server behaves towards people: what is allowed, where it is written, a word at the end, whose token."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from contracts import FakeJudge
from servers import ROOT, Server, in_thread, serving, start, stop, wait_ready
from typer.testing import CliRunner

from latent_rewards import build_reward
from latent_rewards.cli.main import app
from latent_rewards.serving import ServerJudge
from latent_rewards.serving.client import RewardClient
from latent_rewards.serving.docs_page import page
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ROUTES, ServeSettings
from latent_rewards.serving.transport import JudgeServerError

ROW = {"prompt": "Name a prime.", "completion": "Seven."}


@pytest.fixture(scope="module")
def server(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("manners") / "log"
    options = ("--reward", "weighted", "--url-token", "--log-requests")
    with serving(folder, log, *options, LATENT_REWARDS_TOKEN="secret") as it:
        yield it


def ask(server: Server, body: object) -> httpx.Response:
    return httpx.post(server.url + "/score", json=body, headers={"authorization": "Bearer secret"})


def test_an_unknown_field_is_told_what_is_allowed(server: Server) -> None:
    answer = ask(server, {"rows": [ROW], "reward": "weighted"})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "unknown field 'reward', perhaps 'rewards'; allowed are rows, rewards, " in message and "deadline" in message
    assert "unknown field 'zzz'; allowed are" in ask(server, {"rows": [ROW], "zzz": 1}).json()["error"]["message"]


def test_a_token_in_the_url_where_headers_cannot_be_sent(server: Server) -> None:
    slime = {"prompt": "Name a prime.", "response": "Seven.<|im_end|>", "label": "7"}
    score = httpx.post(server.url + "/remote_rm?token=secret", json=slime)
    assert score.status_code == 200
    assert score.json() == pytest.approx(ask(server, {"rows": [ROW]}).json()["rewards"]["weighted"][0], abs=1e-5)
    for query in ("?token=wrong", "?token=", "", "?other=secret"):
        assert httpx.post(server.url + "/remote_rm" + query, json=slime).status_code == 401
    wrong = httpx.post(server.url + "/remote_rm?token=secret", json=slime, headers={"authorization": "Bearer wrong"})
    assert wrong.status_code == 401, "a header comes first"


def test_named_routes_are_open_and_all_others_are_not(folder: str, tmp_path: Path) -> None:
    slime = {"prompt": "Name a prime.", "response": "Seven."}
    query = {"query": ["Name a prime.Seven."], "prompts": ["Name a prime."]}
    options = ("--reward", "weighted", "--open-route", "/remote_rm", "--open-route", "/info")
    with serving(folder, tmp_path / "log", *options, LATENT_REWARDS_TOKEN="secret") as server:
        want = ask(server, {"rows": [ROW]}).json()["rewards"]["weighted"][0]
        open_one = httpx.post(server.url + "/remote_rm?reward=weighted", json=slime)
        assert open_one.status_code == 200 and open_one.json() == pytest.approx(want, abs=1e-5)
        assert httpx.get(server.url + "/info").status_code == 200
        for path, body in (("/score", {"rows": [ROW]}), ("/get_reward", query), ("/remote_rmx", slime)):
            assert httpx.post(server.url + path, json=body).status_code == 401
        assert httpx.get(server.url + "/metrics").status_code == 401
        for path in ("//remote_rm", "/remote_rm/../score", "/remote_rm/", "/score?x=/remote_rm"):
            assert httpx.post(server.url + path, json={"rows": [ROW]}).status_code == 401, path


def test_a_route_that_is_not_there_cannot_be_open(folder: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--judge", folder, "--open-route", "remote_rm"])
    assert done.exit_code == 2 and "no route 'remote_rm'; allowed are /score, " in done.output
    fixed = {"/health", "/ready"}
    with in_thread(Service([FakeJudge()], lambda j: {"weighted": build_reward("weighted", j)}, ServeSettings())) as url:
        assert set(httpx.get(url + "/openapi.json").json()["paths"]) == {*ROUTES} | fixed


def test_end_tokens_of_the_policy_as_a_flag(folder: str, tmp_path: Path) -> None:
    rows = {said: {"prompt": "Name a prime.", "response": said} for said in ("7<turn|>\n[EOT]", "7</s>", "7")}
    options = ("--reward", "weighted", "--end-tokens", "<turn|> [EOT]")
    with serving(folder, tmp_path / "log", *options, LATENT_REWARDS_END_TOKENS="</s>") as server:
        score = {said: httpx.post(server.url + "/remote_rm", json=row).json() for said, row in rows.items()}
        query = {"query": ["Name a prime.7[EOT]", "Name a prime.7</s>"], "prompts": ["Name a prime."] * 2}
        rewards = httpx.post(server.url + "/get_reward", json=query).json()["rewards"]
        kept = ask(server, {"rows": [{"prompt": "Name a prime.", "completion": "7</s>"}]}).json()["rewards"]["weighted"]
    assert score["7<turn|>\n[EOT]"] == pytest.approx(score["7"], abs=1e-5)
    assert abs(score["7</s>"] - score["7"]) > 1e-4, "the flag comes before the variable"
    assert rewards == pytest.approx([score["7"], score["7</s>"]], abs=1e-5) and kept == pytest.approx([score["7</s>"]])


@pytest.mark.parametrize("given", ["<eos>", ["a", ""], [" <eos>"]])
def test_end_tokens_are_a_list_of_texts(given: Any) -> None:
    with pytest.raises(ValueError, match="end_tokens"):
        ServeSettings(end_tokens=given)


def test_a_line_for_each_request_without_what_was_asked(server: Server) -> None:
    ask(server, {"rows": [ROW]})
    httpx.post(server.url + "/remote_rm?token=secret", json={"prompt": "Name a prime.", "response": "Eleven."})
    said = server.log.read_text()
    assert "POST /score 200 0." in said and "POST /remote_rm 200 " in said
    assert "secret" not in said and "Eleven" not in said


def test_the_routes_are_described_without_token_and_network(server: Server) -> None:
    answer = httpx.get(server.url + "/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    text = answer.text
    assert "<code>POST /score</code>" in text and "<code>POST /get_reward</code>" in text
    assert "<script" not in text and "http://" not in text.replace("http://...", "") and "https://" not in text
    assert "&lt;b&gt;" in page({"info": {"title": "<b>"}, "paths": {}})


def test_a_pickle_holds_no_token(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, client = ServerJudge(server.url, token="secret"), RewardClient(server.url, token="secret")
    want = client.score([ROW])
    payloads = [pickle.dumps(judge), pickle.dumps(client)]
    assert all(b"secret" not in payload for payload in payloads)
    monkeypatch.delenv("LATENT_REWARDS_TOKEN", raising=False)
    with pytest.raises(JudgeServerError, match="401"):
        pickle.loads(payloads[1]).score([ROW])
    monkeypatch.setenv("LATENT_REWARDS_TOKEN", "secret")
    assert pickle.loads(payloads[1]).score([ROW]) == want and pickle.loads(payloads[0]).name == judge.name
    monkeypatch.delenv("LATENT_REWARDS_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("LATENT_REWARDS_TOKEN_FILE", str(tmp_path / "token"))
    assert pickle.loads(payloads[1]).score([ROW]) == want


def test_ctrl_c_says_what_it_begins(folder: str, tmp_path: Path) -> None:
    server = start(folder, tmp_path / "log", "--reward", "weighted")
    try:
        wait_ready(server)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=60)
    finally:
        stop(server)
    said = (tmp_path / "log").read_text()
    assert "stopping: what was asked is answered first" in said and "Traceback" not in said


BUSY = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from contracts import FakeJudge
from latent_rewards import build_reward
from latent_rewards.cli.serve import _listen, run
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

def wait(*args):
    print("busy", file=sys.stderr, flush=True)
    ThreadPoolExecutor(1).submit(time.sleep, 90).result()

class Judge(FakeJudge):
    read_rows = wait

service = Service([Judge()], lambda j: {"weighted": build_reward("weighted", j)}, ServeSettings(linger=0))
if sys.argv[1] == "load":
    service.batcher._load = wait
raise SystemExit(run(service, _listen("127.0.0.1", 0)))
"""


@pytest.mark.parametrize(("busy_with", "signals", "status"), [("load", 1, 0), ("read", 2, 130)])
def test_ctrl_c_ends_a_server_whose_judge_is_busy(tmp_path: Path, busy_with: str, signals: int, status: int) -> None:
    """One while it loads; two while it reads what is no longer waited for."""
    log = tmp_path / "log"

    def wait_for(text: str) -> str:
        end = time.monotonic() + 120
        while text not in (said := log.read_text()):
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.05)
        return said

    with log.open("wb") as out:
        path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        command = [sys.executable, "-c", BUSY, busy_with]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=out)
    try:
        url = wait_for(" rewards weighted").split()[0]
        if busy_with == "read":
            while httpx.get(url + "/ready").status_code != 200:
                time.sleep(0.05)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + "/score", json={"rows": [ROW]}, timeout=3)
        wait_for("busy")
        process.send_signal(signal.SIGINT)
        wait_for("stopping: ")
        if signals == 2:
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == status
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(("label", "slots"), [
    ("7", {"reference": "7"}), (7, {"reference": "7"}), (True, {}), (None, {}), ("  ", {}), (["a"], {}),
    ({"reference": "7", "rubrics": ["Is prime."], "other": 1}, {"reference": "7", "rubrics": ["Is prime."]}),
])  # fmt: skip
def test_ground_truth_becomes_slots(label: object, slots: dict[str, object]) -> None:
    from latent_rewards.serving.dialogues import truth_slots

    assert truth_slots(label) == slots
    assert truth_slots(label, {"rubrics": "[1]", "id": 3}) == slots | {"rubrics": "[1]"}


def test_labels_reach_the_judge_prompt(folder: str, tmp_path: Path) -> None:
    prompt = tmp_path / "with_reference.yaml"
    prompt.write_text(
        "kind: label\nsystem: You judge.\nbody: |\n  {{ prompt }} ({{ reference }})\n  {{ completion }}\n  Right?\n"
        "labels: {'yes': 1, 'no': 0}\nspellings: {'yes': ['Yes'], 'no': ['No']}\n"
    )
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    with serving(
        folder,
        tmp_path / "log",
        "--reward",
        f"verifier:{prompt}",
        "--reward-option",
        "output=log_odds",
        "--dtype",
        "float32",
    ) as server:
        rows = [{**ROW, "reference": label} for label in ("7", "11")]
        want = RewardClient(server.url).score(rows)
        assert abs(want[0] - want[1]) > 1e-3
        query = chat.format("Name a prime.") + "Seven.<|im_end|>"
        body = {"query": [query] * 2, "prompts": [chat.format("Name a prime.")] * 2, "labels": ["7", 11]}
        assert httpx.post(server.url + "/get_reward", json=body).json()["rewards"] == pytest.approx(want, abs=1e-5)
        for label, score in zip(("7", {"reference": "11"}), want, strict=True):
            slime = {"prompt": "Name a prime.", "response": "Seven.", "label": label}
            assert httpx.post(server.url + "/remote_rm", json=slime).json() == pytest.approx(score, abs=1e-5)
        short = httpx.post(server.url + "/get_reward", json=body | {"labels": ["7"]})
        assert short.status_code == 422 and "2 queries but 1 labels" in json.dumps(short.json())
