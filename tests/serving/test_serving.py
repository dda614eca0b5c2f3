"""A real judge server: the same scores as in process, answers in JSON, and rude clients."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from contracts import options_for
from servers import Server, serving

from latent_rewards import GuardedReward, HFJudge, JudgePrompt, LikertReward, Need, build_reward
from latent_rewards.judge.reading import Request
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.build import REWARDS as ALL
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

REWARDS = "weighted,verifier,cross_layer,likert10"
SHORT = {"max_new_tokens": 6}
TOKEN = "correct horse"
ROWS = [
    {"prompt": f"Name a prime above {10 * i}.", "completion": text}
    for i in range(4)
    for text in ("Seven.", f"It is {10 * i + 1}, I think", "no idea", "prime " * (i + 2))
]  # 16 rows in 4 groups


@pytest.fixture(scope="module")
def server(folder: str, tmp_path_factory: Any) -> Any:
    sampled = [f"--reward-option=likert10.{k}={v}" for k, v in SHORT.items()]
    with serving(folder, tmp_path_factory.mktemp("serve") / "log", "--rewards", REWARDS, *sampled) as running:
        yield running


@pytest.fixture(scope="module")
def strict(folder: str, tmp_path_factory: Any) -> Any:
    """A server with a token and small limits."""
    limits = [
        "--max-body-mb", "1", "--max-rows", "8", "--max-text-chars", "1000", "--body-timeout", "1.5",
        "--own-prompts-only", "--max-queue-rows", "16",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("strict") / "log"
    with serving(folder, log, *limits, LATENT_REWARDS_TOKEN=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def judge(folder: str) -> HFJudge:
    return HFJudge(folder, dtype="float32", device="cpu")


def columns(rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
    return [r["prompt"] for r in rows], [r["completion"] for r in rows]


def bits(values: Any) -> bytes:
    return np.asarray(values, dtype=np.float64).tobytes()


def error(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("likert")] + ["guided", "gated"])
def test_every_reward_can_be_served(name: str, judge: HFJudge) -> None:
    """Also those that ask for several readings, or draw from one."""

    def build(on: Any) -> dict[str, Reward]:
        kind = {"guided": "likert5", "gated": "guarded"}.get(name, name)
        options: dict[str, Any] = options_for(kind, judge)
        if name == "guided":
            options = {"guided": True, "n_samples": 3}
        elif name == "gated":
            options = {"gate": build_reward("verifier", on), "gate_below": 0.5, "reward": build_reward("weighted", on)}
        made = GuardedReward(**options) if name == "gated" else build_reward(kind, on, **options)
        return {"served": made}

    rows = [*ROWS, {"prompt": "Name a prime.", "completion": ":"}]
    if name == "pairwise":
        rows = [{**row, "other": "Nine."} for row in rows]
    service = Service([judge], build, ServeSettings(linger=0))
    service.batcher.start()
    try:
        scores, reasons, *_ = asyncio.run(service.score(rows, ["served"]))
    finally:
        service.batcher.close()
    want = build(judge)["served"].score(*columns(rows), other=["Nine."] * len(rows))
    np.testing.assert_allclose(scores["served"], want, atol=1e-4)
    assert reasons == [None] * len(rows) and np.isfinite(want).all()


@pytest.mark.parametrize("name", ["weighted", "verifier", "cross_layer"])
def test_scores_equal_in_process_scores_bit_for_bit(server: Server, folder: str, name: str) -> None:
    with server.http() as http:
        got = http.post("/score", json={"rows": ROWS, "rewards": [name]}).json()
    reward = build_reward(name, HFJudge(folder, dtype="float32", device="cpu"))
    assert bits(got["rewards"][name]) == bits(reward.score(*columns(ROWS)))
    assert got["reasons"] == [None] * len(ROWS)


def test_several_rewards_share_one_forward_and_equal_the_judge_reading_them_together(
    server: Server, folder: str
) -> None:
    with server.http() as http:
        before = batches(http)
        got = http.post("/score", json={"rows": ROWS, "rewards": ["weighted", "verifier", "cross_layer"]}).json()
        assert batches(http) == before + 1
    judge = HFJudge(folder, dtype="float32", device="cpu")
    weighted, verifier, layers = (build_reward(n, judge) for n in ("weighted", "verifier", "cross_layer"))
    reads = [Request(weighted.prompt, ROWS, weighted.need | layers.need), Request(verifier.prompt, ROWS, verifier.need)]
    first, second = HFJudge(folder, dtype="float32", device="cpu").read(reads)
    assert bits(got["rewards"]["weighted"]) == bits(weighted.readout(first))
    assert bits(got["rewards"]["cross_layer"]) == bits(layers.readout(first))
    assert bits(got["rewards"]["verifier"]) == bits(verifier.readout(second))


def batches(http: httpx.Client) -> int:
    lines = http.get("/metrics").text.splitlines()
    return int(float(next(x for x in lines if x.startswith("latent_rewards_batch_rows_count")).split()[1]))


def test_label_distributions_on_request(server: Server, judge: HFJudge) -> None:
    with server.http() as http:
        body = http.post("/score", json={"rows": ROWS[:3], "rewards": ["weighted"], "distribution": True}).json()
    got = body["distribution"]["weighted"]
    prompt = JudgePrompt.load("weighted")
    want = judge.read([Request(prompt, ROWS[:3], Need(labels=True))])[0]
    assert got["labels"] == [str(i) for i in range(11)] and got["values"] == list(range(11))
    assert torch.equal(torch.tensor(got["logprobs"]), want.label_logprobs)
    assert torch.equal(torch.tensor(body["label_mass"]["weighted"]), want.label_mass)


def test_sampled_rewards_are_served_too(server: Server, judge: HFJudge) -> None:
    with server.http() as http:
        body = http.post("/score", json={"rows": ROWS[:2], "rewards": ["likert10"]}).json()
    scores, reasons = LikertReward(judge, **SHORT).score_with_reasons(*columns(ROWS[:2]))
    assert body["rewards"]["likert10"] == [None if np.isnan(s) else s for s in scores]
    assert body["reasons"] == reasons


def test_concurrent_clients_get_their_own_answers(server: Server, judge: HFJudge) -> None:
    """Each answer against the in-process score of that row; mixing with other clients' rows moves it by rounding."""
    want = build_reward("weighted", judge).score(*columns(ROWS))

    def ask(i: int) -> float:
        row = ROWS[i % len(ROWS)]
        answer = server_http.post("/score", json={"rows": [row], "rewards": ["weighted"]})
        assert answer.status_code == 200, answer.text
        return answer.json()["rewards"]["weighted"][0]

    with server.http(limits=httpx.Limits(max_connections=32)) as server_http, ThreadPoolExecutor(32) as pool:
        before = batches(server_http)
        got = list(pool.map(ask, range(160)))
        assert batches(server_http) - before < 160, "requests were judged together"
    np.testing.assert_allclose(got, [want[i % len(ROWS)] for i in range(160)], rtol=1e-5)
    assert len({round(w, 9) for w in want}) == len(ROWS), "a swapped answer would be seen"


def test_alone_means_bit_for_bit_whatever_others_send(server: Server, judge: HFJudge) -> None:
    reward = build_reward("weighted", judge)
    want = [bits(reward.score(*columns([row]))) for row in ROWS]

    def ask(i: int) -> bytes:
        answer = http.post("/score", json={"rows": [ROWS[i]], "rewards": ["weighted"], "alone": True})
        return bits(answer.json()["rewards"]["weighted"])

    with server.http(limits=httpx.Limits(max_connections=16)) as http, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(len(ROWS)))) == want


def test_read_is_exact_base64(server: Server, judge: HFJudge) -> None:
    from latent_rewards.serving.schemas import NeedSpec, PromptSpec

    prompt, need = JudgePrompt.load("weighted"), Need(labels=True, hidden=frozenset({1, -1}))
    reads = [{"prompt": PromptSpec.of(prompt).model_dump(), "need": NeedSpec.of(need).model_dump()}]
    with server.http() as http:
        got = http.post("/read", json={"rows": ROWS[:2], "reads": reads}).json()["readings"][0]
    want = judge.read([Request(prompt, ROWS[:2], need)])[0]
    assert set(got["hidden"]) == {"1", "-1"} and got["hidden"]["1"]["shape"] == [2, 32]
    assert base64.b64decode(got["hidden"]["-1"]["f32"]) == want.hidden[-1].numpy().tobytes()
    assert base64.b64decode(got["label_logprobs"]["f32"]) == want.label_logprobs.numpy().tobytes()


def test_other_stacks_routes(server: Server, judge: HFJudge) -> None:
    chatml = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
    reward = build_reward("weighted", judge)
    row = {"prompt": "Name a prime.", "completion": "Seven <|im_end|> of nine"}
    want = float(reward.score(*columns([row]))[0])
    asked = chatml(row["prompt"])
    with server.http() as http:
        query = {"query": [asked + row["completion"] + "<|im_end|>\n"], "prompts": [asked], "labels": [None]}
        got = http.post("/get_reward", json=query).json()
        assert got["rewards"] == [pytest.approx(want, rel=1e-6)]
        assert got["scores"] == [pytest.approx(want / 10, rel=1e-6)] and 0 < got["extra_logs"]["label_mass"][0] < 1
        got = http.post("/get_reward?reward=verifier", json=query).json()
        assert got["rewards"] == got["scores"] and 0 < got["scores"][0] < 1
        slime = {"prompt": [{"role": "user", "content": row["prompt"]}], "response": row["completion"], "label": "x"}
        assert http.post("/remote_rm", json=slime).json() == pytest.approx(want, rel=1e-6)
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        verl = {"model": "m", "input": json.dumps(messages), "use_activation": False}
        got = http.post("/classify", json=verl).json()
        assert got["data"][-1]["probs"][-1] == pytest.approx(want, rel=1e-6)
        bad = http.post("/get_reward", json={"query": ["x", "nothing of the prompt"], "prompts": ["", asked]})
        assert bad.status_code == 422 and error(bad)["row"] == 1 and "does not hold" in error(bad)["message"]
        assert http.post("/remote_rm?reward=nope", json=slime).status_code == 404
        bad = http.post("/classify", json={"input": chatml("a") + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>"})
        assert bad.status_code == 422 and "last turn must be the assistant's" in error(bad)["message"]


def test_a_row_without_score_is_null_with_a_reason_and_an_error_where_null_is_no_answer(server: Server) -> None:
    long = {"prompt": "p", "completion": "word " * 9000}
    with server.http() as http:
        body = http.post("/score", json={"rows": [ROWS[0], long], "rewards": ["weighted", "verifier"]}).json()
        assert all(s[0] is not None and s[1] is None for s in body["rewards"].values())
        assert body["reasons"][0] is None and "this judge reads at most" in body["reasons"][1]
        refused = http.post("/remote_rm", json={"prompt": "p", "response": long["completion"]})
    assert refused.status_code == 422 and error(refused)["type"] == "no_score"


BAD: list[tuple[str, Any, int, str]] = [
    ("cut short", b'{"rows": [', 400, "no JSON"),
    ("no JSON", b"hello", 400, "no JSON"),
    ("not UTF-8", b'{"rows": [{"prompt": "\xff\xfe\xe9"}]}', 400, "no JSON: not utf-8: invalid start byte"),
    ("a long number", b'{"rows": [' + b"9" * 5000 + b"]}", 400, "no JSON: Exceeds the limit"),
    ("nested deep", b"[" * 100_000, 400, "nested too deeply"),
    ("a list", [], 422, "dictionary"),
    ("no rows", {}, 422, "rows: Field required"),
    ("unknown field", {"rows": [], "temprature": 1}, 422, "temprature"),
    ("unknown reward", {"rows": [], "rewards": ["best"]}, 422, "Input should be 'weighted'"),
    ("row lacks a slot", {"rows": [ROWS[0], {"prompt": "a"}]}, 422, "row 1: prompt 'weighted' needs 'completion'"),
    ("row is text", {"rows": [ROWS[0], ROWS[0], "a"]}, 422, "row 2"),
    ("image part", {"rows": [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "b"}]},
     422, "row 0: prompt"),
    ("bad deadline", {"rows": [], "deadline": -1}, 422, "deadline"),
    ("a number for yes", {"rows": [], "alone": 1}, 422, "alone"),
    ("text for a number", {"rows": [], "deadline": "5"}, 422, "deadline: a number is expected, not '5'"),
    ("NaN deadline", b'{"rows": [], "deadline": NaN}', 422, "deadline"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "body", "status", "text"), BAD, ids=[b[0] for b in BAD])
def test_malformed_requests_get_a_clear_4xx(server: Server, what: str, body: Any, status: int, text: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with server.http() as http:
        answer = http.post("/score", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    detail = error(answer)
    assert text in detail["message"]
    if "row " in detail["message"]:
        assert detail["message"].startswith(f"row {detail['row']}: ")


JSON = {"content-type": "application/json"}
GOOD = json.dumps({"rows": [ROWS[0]], "rewards": ["weighted"]}).encode()
FORM = {"content-type": "application/x-www-form-urlencoded"}
SENT: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("what curl -d sends", GOOD, FORM, 415, "send JSON with -H 'Content-Type: application/json'"),
    ("text", GOOD, {"content-type": "text/plain"}, 415, "the content type is 'text/plain'"),
    ("no type", GOOD, {}, 415, "names no content type"),
    ("json with a charset", GOOD, {"content-type": "application/json; charset=utf-8"}, 200, ""),
    ("gzip", gzip.compress(GOOD), {**JSON, "content-encoding": "gzip"}, 200, ""),
    ("two gzip members", gzip.compress(GOOD[:9]) + gzip.compress(GOOD[9:]), {**JSON, "content-encoding": "GZIP"},
     200, ""),
    ("deflate", zlib.compress(GOOD), {**JSON, "content-encoding": "deflate"}, 200, ""),
    ("identity", GOOD, {**JSON, "content-encoding": "identity"}, 200, ""),
    ("no gzip", GOOD, {**JSON, "content-encoding": "gzip"}, 400, "the body is no gzip"),
    ("cut gzip", gzip.compress(GOOD)[:-9], {**JSON, "content-encoding": "gzip"}, 400, "cut short"),
    ("gzip untold", gzip.compress(GOOD), JSON, 400, "no JSON: not utf-8"),
    ("brotli", GOOD, {**JSON, "content-encoding": "br"}, 415, "the content encoding is 'br'; send gzip"),
    ("gzip of no JSON", gzip.compress(b"hello"), {**JSON, "content-encoding": "gzip"}, 400, "no JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "body", "headers", "status", "text"), SENT, ids=[s[0] for s in SENT])
def test_how_a_body_is_sent(
    server: Server, what: str, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    with server.http() as http:
        answer = http.post("/score", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert status == 200 or text in error(answer)["message"]


def test_a_small_body_that_unpacks_to_too_much(strict: Server) -> None:
    body = gzip.compress(b'{"rows": [' + b" " * (64 << 20) + b"]}")  # 64 KB; the limit is 1 MB
    headers = {**JSON, "content-encoding": "gzip", "authorization": f"Bearer {TOKEN}"}
    before = strict.rss()
    with strict.http() as http:
        answer = http.post("/score", content=body, headers=headers)
    assert answer.status_code == 413 and "unpacks to more than 1048576 bytes" in error(answer)["message"]
    assert strict.rss() - before < 32 << 20


def test_lone_surrogates_are_scored_as_in_process(server: Server, judge: HFJudge) -> None:
    row = {"prompt": "a \ud800 b", "completion": "c"}
    with server.http() as http:
        content = json.dumps({"rows": [row], "rewards": ["weighted"]}).encode()
        got = http.post("/score", content=content, headers={"content-type": "application/json"}).json()
    assert got["rewards"]["weighted"] == build_reward("weighted", judge).score(*columns([row])).tolist()


def test_prompts_of_clients_may_only_fill_slots(server: Server) -> None:
    def ask(body: str, **changes: Any) -> httpx.Response:
        spec = {"body": body, "names": ["a", "b"], "values": [0, 1], "spellings": [["a"], ["b"]]} | changes
        with server.http() as http:
            reads = [{"prompt": spec, "need": {"labels": True}}]
            return http.post("/read", json={"rows": [{"prompt": "p", "completion": "c"}], "reads": reads})

    fine = "{{ prompt }} {% if completion %}{{ completion }}{% endif %} a or b?"
    assert ask(fine).status_code == 200
    for evil in (
        "{{ prompt }}{{ completion }}{% for i in range(9999) %}x{% endfor %}",
        "{{ prompt }}{{ completion }}{{ 'a' * 9 }}",
        "{{ prompt }}{{ completion }}{{ cycler.__init__ }}", "{{ prompt }}{{ completion | upper }}", "{{ prompt",
        "{{ prompt }}{{ completion }}{% macro m() %}{{ m() }}{% endmacro %}", "{% if x %}" * 4000, "no slots",
    ):  # fmt: skip
        answer = ask(evil)
        assert answer.status_code == 422 and error(answer)["type"] == "bad_prompt", evil
    assert "share the spelling" in error(ask(fine, spellings=[["a"], ["b", "a"]]))["message"]
    assert error(ask(fine, spellings=None))["message"].startswith("names, values and spellings")
    with server.http() as http:
        reads = [{"prompt": {"body": fine, "names": ["a", "b"], "values": [0, 1], "spellings": [["a"], ["b"]]},
                  "need": {"hidden": [99]}}]  # fmt: skip
        answer = http.post("/read", json={"rows": [{"prompt": "p", "completion": "c"}], "reads": reads})
    assert answer.status_code == 422 and "layers 1..3" in error(answer)["message"]


# ---- a server with a token and limits -------------------------------------------------------------------------------


def test_the_token_guards_everything_but_health(strict: Server) -> None:
    row = {"rows": [{"prompt": "a", "completion": "b"}]}
    with strict.http() as http:
        assert http.get("/health").status_code == http.get("/ready").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"},
                        {"authorization": "Bearer \xff".encode("latin-1")}):  # fmt: skip
            for path in ("/score", "/read", "/get_reward"):
                answer = http.post(path, json=row, headers=headers)
                assert answer.status_code == 401 and error(answer)["type"] == "unauthorized"
            assert http.get("/metrics", headers=headers).status_code == 401
            assert http.get("/openapi.json", headers=headers).status_code == 200, "what the routes are is no secret"
        assert http.post("/score", json=row, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(("line", "status"), [("content-length: 3000000", b" 401 "),
                                              ("transfer-encoding: chunked", b" 413 ")])  # fmt: skip
def test_a_client_that_is_refused_while_it_sends_is_not_cut_off(strict: Server, line: str, status: bytes) -> None:
    lines = head(line)
    if status == b" 401 ":
        lines = lines.replace(TOKEN.encode(), b"wrong")
    where = urlsplit(strict.url)
    part = b"x" * 300_000 if status == b" 401 " else b"493e0\r\n" + b"x" * 300_000 + b"\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(lines)
        for _ in range(10):
            connection.sendall(part)  # after the answer has been sent; a connection closed on it is reset
            time.sleep(0.05)
        answer = connection.makefile("rb").readline()
    assert status in answer


CLOSE = "connection: close"
EARLY: list[tuple[str, str, bytes]] = [
    ("POST /score", "content-type: text/plain", b" 415 "), ("POST /nothing", "x: y", b" 404 "),
    ("PUT /score", "x: y", b" 405 "), ("GET /health", "x: y", b" 200 "), ("HEAD /docs", "x: y", b" 405 "),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "line", "status"), EARLY, ids=[e[0] for e in EARLY])
def test_a_client_that_is_answered_before_it_has_sent_all_is_not_cut_off(
    server: Server, asked: str, line: str, status: bytes
) -> None:
    where = urlsplit(server.url)
    before = server.rss()
    lines = [f"{asked} HTTP/1.1", "host: x", CLOSE, "content-length: 30000000", line]
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        for _ in range(10):
            connection.sendall(b"x" * 3_000_000)
            time.sleep(0.02)
        answer = connection.makefile("rb").read()
    first, _, rest = answer.partition(b"\r\n")
    headers, _, body = rest.lower().partition(b"\r\n\r\n")
    length = 0 if asked.startswith("HEAD") else len(body)
    assert status in first and len(body) == length
    assert asked.startswith("HEAD") or f"content-length: {length}".encode() in headers
    assert server.rss() - before < 20 << 20


@pytest.mark.parametrize("given", ["text/plain", "application/json"])
def test_a_kept_connection_serves_on_after_a_body_that_nobody_read(server: Server, given: str) -> None:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.connect()
    socket_, started = connection.sock, time.monotonic()
    for _ in range(3):
        connection.request("POST", "/score", GOOD, {"content-type": given})
        answer = connection.getresponse()
        assert answer.status == (415 if given == "text/plain" else 200) and json.loads(answer.read())
        assert connection.sock is socket_
    connection.close()
    assert time.monotonic() - started < 3, "nobody waits for a second of silence"


def test_limits_of_rows_texts_and_prompts(strict: Server) -> None:
    from latent_rewards.serving.schemas import PromptSpec

    headers = {"authorization": f"Bearer {TOKEN}"}
    row = {"prompt": "a", "completion": "b"}
    with strict.http(headers=headers) as http:
        many = http.post("/score", json={"rows": [row] * 9})
        long = http.post("/score", json={"rows": [row, {"prompt": "a", "completion": "b" * 1001}]})
        other = PromptSpec.of(JudgePrompt.load("four_rubric")).model_dump()
        barred = http.post("/read", json={"rows": [row], "reads": [{"prompt": other, "need": {"labels": True}}]})
    assert many.status_code == 413 and "split it" in error(many)["message"]
    assert long.status_code == 413 and error(long)["row"] == 1 and "1001 characters" in error(long)["message"]
    assert barred.status_code == 403


def raw(server: Server, *parts: bytes, pause: float = 0.0, read: bool = True, until: bytes = b"}}") -> bytes:
    """Bytes sent as they are; the answer until the server closes or says all. A socket that waits is an error."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        out = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except TimeoutError:
            raise
        except OSError:
            pass  # refused while we were still sending
        try:
            while read and (got := connection.recv(65536)):
                out += got
                if until in out:
                    break
        except TimeoutError:
            raise
        except OSError:
            pass
        return out


def head(*lines: str) -> bytes:
    fixed = ["POST /score HTTP/1.1", "host: x", "content-type: application/json", f"authorization: Bearer {TOKEN}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def test_bodies_of_100_mb_are_refused_without_being_kept(strict: Server) -> None:
    before = strict.rss()
    declared = raw(strict, head(f"content-length: {100 << 20}"), b"x" * 1000, until=b"the server closes")
    first, _, rest = declared.partition(b"\r\n")
    assert b" 413 " in first and b"connection: close" in rest.lower()
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["type"] == "too_large"
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    chunked = raw(strict, head("transfer-encoding: chunked"), *[chunk] * 100)
    assert b" 413 " in chunked.split(b"\r\n")[0] or chunked == b"", "answered, or hung up on while sending"
    assert strict.rss() - before < 20 << 20
    small = b"2\r\n{}\r\n0\r\n\r\n"
    assert b" 422 " in raw(strict, head("transfer-encoding: chunked"), small).split(b"\r\n")[0]


def test_slow_bodies_and_bad_http_end(strict: Server) -> None:
    started = time.monotonic()
    slow = raw(strict, head("content-length: 100"), b'{"rows"', *[b" "] * 12, pause=0.2)
    assert b" 408 " in slow.split(b"\r\n")[0] and time.monotonic() - started < 8
    assert b" 400 " in raw(strict, b"\x16\x03\x01 no http\r\n\r\n").split(b"\r\n")[0]
    assert strict.http().get("/health").status_code == 200


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_bad_http_while_a_request_is_answered_costs_a_line_of_the_log(strict: Server, token: str) -> None:
    before = strict.log.stat().st_size
    chunked, whole = (
        head(line).replace(TOKEN.encode(), token.encode())
        for line in ("transfer-encoding: chunked", "content-length: 2")
    )
    sent = [
        (chunked, b"zz\r\n"), (chunked + b"zz\r\n",), (chunked, b"2\r\n{}\r\nzz\r\n"),
        (whole + b"{}" + whole + b"x" * 300_000, b"x" * 300_000),
        (whole + b"{}" + whole.replace(b"length: 2", b"length: 3000000") + b"x" * 3_000_000,),
    ]  # fmt: skip
    for parts in sent:
        raw(strict, *parts, pause=0.2)
    said = strict.log.read_bytes()[before:].decode()
    assert "Traceback" not in said and len(said.splitlines()) <= len(sent), said


@pytest.mark.parametrize("requests", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_disconnects_and_many_tiny_requests_leave_the_server_as_it_was(server: Server, requests: int) -> None:
    body = json.dumps({"rows": ROWS, "rewards": ["weighted"]}).encode()
    request = (f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
               f"content-length: {len(body)}\r\n\r\n").encode()  # fmt: skip
    for cut in (0, 10, len(body) // 2, len(body)):
        for _ in range(5):
            raw(server, request, body[:cut], read=False)
    where = urlsplit(server.url)
    tiny = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n{"

    def hammer(n: int) -> int:
        good = 0
        with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
            file = connection.makefile("rb")
            for _ in range(n):
                connection.sendall(tiny)
                good += b" 400 " in file.readline()
                length = 0
                while (line := file.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                file.read(length)
        return good

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(hammer, [requests // 32] * 8)) == requests // 32 * 8
        before = server.rss()
        assert sum(pool.map(hammer, [requests // 8] * 8)) == requests
    assert server.rss() - before < 10 << 20, "memory returns"
    with server.http() as http:
        lines = http.get("/metrics").text.splitlines()
        assert "latent_rewards_waiting_rows 0.0" in lines
        assert http.post("/score", json={"rows": ROWS[:1]}).status_code == 200


def test_a_full_queue_is_told_to_come_back(strict: Server) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    text = "word " * 60
    rows = [{"prompt": f"{i} {text}", "completion": text} for i in range(8)]
    answers: list[httpx.Response] = []

    def ask(i: int) -> None:
        fresh = [{"prompt": f"{i} {r['prompt']}"[:1000], "completion": r["completion"]} for r in rows]
        answers.append(http.post("/score", json={"rows": fresh}))

    with strict.http(headers=headers, limits=httpx.Limits(max_connections=20)) as http:
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = {answer.status_code for answer in answers}
        assert seen == {200, 429}
        refused = [a for a in answers if a.status_code == 429]
        assert all(1 <= int(a.headers["retry-after"]) <= 60 and error(a)["type"] == "queue_full" for a in refused)


def test_openapi_describes_every_route_and_error(server: Server) -> None:
    with server.http() as http:
        schema = http.get("/openapi.json").json()
    assert {"/score", "/read", "/generate", "/get_reward", "/remote_rm", "/classify", "/health", "/ready", "/metrics",
            "/info", "/llama_factory"} == set(schema["paths"])  # fmt: skip
    assert {"200", "400", "401", "413", "422", "429", "503", "504"} <= set(
        schema["paths"]["/score"]["post"]["responses"]
    )
    row = schema["components"]["schemas"]["ScoreRequest"]["properties"]["rows"]["items"]
    assert row["required"] == ["prompt", "completion"]


def test_metrics_count(server: Server) -> None:
    with server.http() as http:
        http.post("/score", json={"rows": ROWS[:2], "rewards": ["weighted"]})
        text = http.get("/metrics").text
    for name in ("requests_total", "rows_total", "batch_rows_bucket", "request_seconds_bucket", "judge_seconds_total"):
        assert f"latent_rewards_{name}" in text
    assert 'latent_rewards_label_mass{reward="weighted"}' in text and "latent_rewards_ready 1.0" in text


def test_shutdown_finishes_what_was_accepted(folder: str, tmp_path: Path) -> None:
    text = "word " * 400
    rows = [{"prompt": f"{i}", "completion": text} for i in range(48)]
    with serving(folder, tmp_path / "log", "--device", "cpu", "--max-batch-rows", "12") as running:
        with running.http() as http, ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(http.post, "/score", json={"rows": rows[12 * i : 12 * i + 12]}) for i in range(4)]
            while waiting(running) == 0:
                assert not all(job.done() for job in jobs), "too fast a machine for this test: give it more rows"
            running.process.terminate()
            answers = [job.result() for job in jobs]
        assert [a.status_code for a in answers] == [200] * 4
        assert all(s is not None for a in answers for s in a.json()["rewards"]["weighted"])
        running.process.wait(30)
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url + "/health", trust_env=False)


def waiting(server: Server) -> float:
    lines = httpx.get(server.url + "/metrics", trust_env=False, timeout=60).text.splitlines()
    return float(next(line for line in lines if line.startswith("latent_rewards_waiting_rows")).split()[1])


def test_deadlines_and_clients_that_left_free_the_judge() -> None:
    """The application itself around a judge that waits: 504 after the deadline; nothing is judged for nobody."""
    from fastapi.testclient import TestClient
    from test_batching import Gate

    from latent_rewards.serving.app import create_app
    from latent_rewards.serving.service import Service
    from latent_rewards.serving.settings import ServeSettings

    judge = Gate()
    service = Service([judge], lambda j: {"weighted": build_reward("weighted", j)}, ServeSettings(linger=0.0))
    with TestClient(create_app(service)) as http, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(http.post, "/score", json={"rows": [{"prompt": "p", "completion": "busy"}]})
        assert judge.started.wait(20)
        late = http.post("/score", json={"rows": [{"prompt": "p", "completion": "late"}], "deadline": 1.0})
        assert late.status_code == 504 and error(late)["type"] == "deadline"
        slime = {"prompt": "p", "response": "late"}
        late = http.post("/remote_rm?deadline=1", json=slime)
        assert late.status_code == 504, "slime's route waits 110 s, unless the URL says otherwise"
        for wrong in ("0", "-1", "nan", "soon", ""):
            assert http.post(f"/remote_rm?deadline={wrong}", json=slime).status_code == 422
        judge.go.set()
        assert busy.result(20).status_code == 200
        after = http.post("/score", json={"rows": [{"prompt": "p", "completion": "after"}]})
        assert after.status_code == 200 and judge.seen == [["busy"], ["after"]]
