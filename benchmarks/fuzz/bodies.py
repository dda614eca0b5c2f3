"""Fuzz target for the judge server: random JSON bodies through FastAPI's own client, with a judge that is free."""

from __future__ import annotations

import atexit
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.fuzz.draw import KEYS, Draw, damaged
from latent_rewards import ProbabilityWeightedReward, VerifierReward
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Need, Reading, Request

PATHS = ("/score", "/score", "/score", "/read", "/generate", "/get_reward", "/remote_rm", "/classify")
NEAR: dict[str, dict[str, Any]] = {
    "/score": {
        "rows": [{"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "d"}],
        "rewards": ["weighted"],
    },
    "/read": {
        "rows": [{"prompt": "p", "completion": "c"}],
        "reads": [{"prompt": {"body": "{{ prompt }}"}, "need": {}}],
    },
    "/generate": {"rows": [{"prompt": "p"}], "prompt": {"body": "{{ prompt }}"}, "n": 1},
    "/get_reward": {"query": ["p c"], "prompts": ["p"]},
    "/remote_rm": {"prompt": "p", "response": "c"},
    "/classify": {"input": ["p c"]},
}


class Constant(Judge):
    """All labels are equally probable; any answer is "5"."""

    name, fingerprint, revision, n_layers = "constant", "constant", "0", 2
    capabilities = frozenset({"labels", "generate"})

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """Anything goes."""

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Rows are rendered, as a real judge does."""
        return [self._read(request.prompt, request.rows) for request in requests]

    def _read(self, prompt: JudgePrompt, rows: Any) -> Reading:
        for row in rows:
            prompt.render(row)
        k = len(prompt.labels or ())
        logprobs = torch.full((len(rows), k), -math.log(k) if k else 0.0)
        return Reading(logprobs, torch.ones(len(rows)), reasons=(None,) * len(rows))

    def generate(self, prompt: JudgePrompt, rows: Any, *, n: int, **_: Any) -> list[list[str | None]]:
        """N times the same."""
        return [["5"] * n for row in rows if prompt.render(row)]


@functools.cache
def client() -> Any:
    """A started server in this process."""
    from fastapi.testclient import TestClient

    from latent_rewards.serving.app import create_app
    from latent_rewards.serving.service import Service
    from latent_rewards.serving.settings import ServeSettings

    def build(judge: Any) -> dict[str, Any]:
        return {"weighted": ProbabilityWeightedReward(judge), "verifier": VerifierReward(judge)}

    settings = ServeSettings(linger=0.0, max_rows=8, max_text_chars=400, max_body_bytes=1 << 16)
    service = Service([Constant()], build, settings)  # type: ignore[list-item]
    service.batcher.start()
    atexit.register(service.batcher.close)
    made = TestClient(create_app(service), raise_server_exceptions=False)
    while made.get("/ready").status_code != 200:
        pass
    return made


def bodies(d: Draw) -> None:
    """Near-miss, random and broken bodies: never a 5xx, always JSON, and as many scores as rows."""
    path = d.choice(PATHS)
    body = _body(d, path)
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    raw = damaged(d, raw) if d.flag(4) else raw
    answer = client().post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code < 500, (path, raw, answer.status_code, answer.text[:300])
    told = answer.json()
    if answer.status_code == 200 and path == "/score":
        n = len(json.loads(raw)["rows"])
        assert all(len(v) == n for v in told["rewards"].values()) and len(told["reasons"]) == n, (raw, told)
        assert all(x is None or math.isfinite(x) for v in told["rewards"].values() for x in v), (raw, told)
    if answer.status_code >= 400:
        assert told["error"]["message"] and "Traceback" not in told["error"]["message"], told


def _body(d: Draw, path: str) -> Any:
    near: Any = json.loads(json.dumps(NEAR[path]))
    if d.flag(8):
        return d.value()
    for _ in range(d.number(0, 2)):
        near[d.choice((*near, *KEYS))] = d.value()
    rows = near.get("rows")
    if isinstance(rows, list) and d.flag():
        for _ in range(d.number(1, 10)):
            rows.append({"prompt": d.text(), "completion": d.text() if d.flag() else d.value()})
    return near
