"""Stand-ins for other engines' HTTP servers: a real judge model behind their exact request and answer formats.

Formats from vLLM 0.32 `entrypoints/openai/completion`, SGLang `entrypoints/openai/serving_score.py`, llama.cpp
`tools/server/README.md`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from latent_rewards import HFJudge


class EngineDouble:
    """Answers as an engine would, from the judge's own logits; keeps the requests."""

    def __init__(self, judge: HFJudge, *, chosen_ids: bool = True, max_logprobs: int = 20) -> None:
        self.judge, self.chosen_ids, self.max_logprobs = judge, chosen_ids, max_logprobs
        self.requests: list[tuple[str, Any]] = []
        self.failures: list[int] = []
        self.lock = threading.Lock()

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        with self.lock:
            return torch.log_softmax(self.judge.blocks.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)

    def answer(self, path: str, body: Any) -> Any:
        self.requests.append((path, body))
        return {
            "/v1/models": self.models, "/props": self.props, "/v1/completions": self.completions,
            "/v1/score": self.score, "/completion": self.completion,
        }[path](body)  # fmt: skip

    def models(self, _: Any) -> Any:
        return {"object": "list", "data": [{"id": "org/tiny", "object": "model", "max_model_len": 4096}]}

    def props(self, _: Any) -> Any:
        return {"default_generation_settings": {"n_ctx": 4096}, "model_path": "/models/tiny-F16.gguf"}

    def completions(self, body: Any) -> Any:
        if "prompt_logprobs" in body:
            return self.prompt_logprobs(body)
        choices = []
        for i, ids in enumerate(body["prompt"]):
            logprobs = self.logprobs(ids)
            sampled = int(logprobs.argmax())
            if self.chosen_ids and body.get("logprob_token_ids"):
                shown = [sampled, *body["logprob_token_ids"]]
            else:
                shown = [
                    sampled,
                    *logprobs.topk(min(body["logprobs"], self.max_logprobs, len(logprobs))).indices.tolist(),
                ]
            top = {f"token_id:{t}": max(float(logprobs[t]), -9999.0) for t in shown}
            choices.append({"index": i, "text": "", "logprobs": {"tokens": [f"token_id:{sampled}"],
                            "token_logprobs": [float(logprobs[sampled])], "top_logprobs": [top]}})  # fmt: skip
        return {"object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def prompt_logprobs(self, body: Any) -> Any:
        """The first token has none; of the others the most likely token's, and the token's own."""
        choices = []
        for i, ids in enumerate(body["prompt"]):
            shown: list[Any] = [None]
            for at in range(1, len(ids)):
                logprobs = self.logprobs(ids[:at])
                tokens = {int(logprobs.argmax()), ids[at]}
                shown.append({str(t): {"logprob": float(logprobs[t]), "rank": 1, "decoded_token": ""} for t in tokens})
            choices.append({"index": i, "text": "", "logprobs": None, "prompt_logprobs": shown})
        return {"object": "text_completion", "model": body["model"], "choices": choices[::-1]}

    def score(self, body: Any) -> Any:
        assert all(body["items"]), "an item has at least one token"
        rows = [self.logprobs([*body["query"], *item]) for item in body["items"]]
        return {"object": "scoring", "model": body["model"],
                "scores": [[float(r[t].exp()) for t in body["label_token_ids"]] for r in rows]}  # fmt: skip

    def completion(self, body: Any) -> Any:
        assert body["n_predict"] == 1 and not body["post_sampling_probs"]
        logprobs = self.logprobs(body["prompt"])
        best = logprobs.topk(min(body["n_probs"], len(logprobs)))
        top = [{"id": int(t), "token": "", "bytes": [], "logprob": float(p)} for p, t in zip(*best, strict=True)]
        return {"content": "", "completion_probabilities": [{**top[0], "top_logprobs": top}]}


@contextlib.contextmanager
def running(double: EngineDouble) -> Iterator[str]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.reply(body)

        def do_GET(self) -> None:
            self.reply(None)

        def reply(self, body: Any) -> None:
            status, answer = 200, b"{}"
            with double.lock:
                if double.failures:
                    status = double.failures.pop(0)
            if status == 200:
                answer = json.dumps(double.answer(self.path, body)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
