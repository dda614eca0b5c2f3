"""Generators: seeds, batches, prompts that do not fit, and a real HTTP server."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from latent_rewards.best_of_n.generation import HFGenerator, build_generator
from latent_rewards.best_of_n.sampling import Sampling
from latent_rewards.best_of_n.servers import PolicyFailedError, ServerGenerator, VLLMGenerator
from latent_rewards.cli.main import app
from latent_rewards.engine.sampling import sample_answers

PROMPTS = [
    "Name a prime.",
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Yes or no?"}],
    "7",
]
KEYS = ["0", "1", "2"]


def test_completions_depend_on_seed_and_keys_alone(policy: str) -> None:
    sampling = Sampling(n=3, max_new_tokens=6)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = HFGenerator(policy, sampling, dtype="float32", device="cpu").generate(PROMPTS, KEYS)
    torch.manual_seed(1)
    generator = HFGenerator(policy, sampling, dtype="float32", device="cpu")
    assert generator.generate(PROMPTS, KEYS) == first == generator.generate(PROMPTS, KEYS)
    assert [len(texts or ()) for texts in first] == [3, 3, 3] and len({t for x in first for t in x or ()}) > 3
    assert generator.generate(PROMPTS, ["a", "b", "c"]) != first
    other = HFGenerator(policy, Sampling(n=3, max_new_tokens=6, seed=1), dtype="float32", device="cpu")
    assert other.generate(PROMPTS, KEYS) != first
    torch.random.set_rng_state(before)
    assert generator.facts["n"] == 3 and generator.facts["revision"] == other.facts["revision"]


def test_small_batches_and_greedy(policy: str) -> None:
    greedy = Sampling(n=2, temperature=0.0, max_new_tokens=5)
    one = HFGenerator(policy, greedy, dtype="float32", device="cpu", batch_tokens=1).generate(PROMPTS, KEYS)
    assert one == HFGenerator(policy, greedy, dtype="float32", device="cpu").generate(PROMPTS, KEYS)
    assert all(texts is not None and texts[0] == texts[1] for texts in one)


def test_a_prompt_that_does_not_fit_costs_only_itself(policy: str) -> None:
    generator = HFGenerator(policy, Sampling(n=2, max_new_tokens=8000), dtype="float32", device="cpu")
    assert generator.generate(["7 " * 300], ["0"]) == [None]


def test_one_prefill_for_all_samples_gives_what_whole_copies_give(make_model: Any, tokenizers: dict[str, Any]) -> None:
    """The keys and values of a prompt, repeated, against the prompt itself, repeated: greedy on peaked models."""
    tok = tokenizers["digits"]
    for family in ("llama", "mistral", "gemma2"):
        model = make_model(family, tok).eval()
        ids = [
            tok.encode("The quick brown fox jumps over the lazy dog and 10 more dogs came at 10"),
            tok.encode("Yes 7"),
        ]
        cold = {"temperature": 1e-4, "max_new_tokens": 8, "seed": 0}
        many = sample_answers(model, tok, ids, n=3, **cold)
        alone = sample_answers(model, tok, ids, n=1, **cold)
        assert many == [[a] * 3 for (a,) in alone]


def test_facts_hold_the_weights_and_the_layout_of_the_prompts(policy: str, tmp_path: Path) -> None:
    moved = shutil.copytree(policy, tmp_path / "moved")
    facts = HFGenerator(policy, device="cpu").facts
    template = (moved / "chat_template.jinja").read_text()
    (moved / "chat_template.jinja").write_text("It is Monday.\n" + template)
    other = HFGenerator(str(moved), device="cpu").facts
    assert {k for k in facts if facts[k] != other[k]} == {"model", "layout", "tokenizer"}
    assert json.loads(json.dumps(facts)) == facts


def test_options_are_checked() -> None:
    for wrong in ({"n": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="need"):
            Sampling(**wrong)
    with pytest.raises(ValueError, match="unknown generation backend"):
        build_generator("tgi", "m", Sampling())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend 'server'"):
        build_generator("server", "m", Sampling(), port=1)


@pytest.fixture
def server() -> Iterator[Any]:
    """A chat completions endpoint that fails in the ways real ones do, and says what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][-1]["content"]
            log.append((self.path, body))
            if text == "busy" and sum(b["messages"][-1]["content"] == "busy" for _, b in log) < 3:
                return self.answer(503, {"error": "busy"})
            if text == "too long":
                return self.answer(400, {"error": "maximum context length"})
            if body["model"] == "broken":
                return self.answer(400, {"error": "max_tokens is too large"})
            choices = [
                {"index": i, "message": {"content": f"{text} {body['seed']} {i}"}} for i in reversed(range(body["n"]))
            ]
            return self.answer(200, {"choices": choices[: 1 if text == "few" else None]})

        def answer(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    log: list[tuple[str, dict[str, Any]]] = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield types.SimpleNamespace(url=f"http://127.0.0.1:{httpd.server_port}/v1", log=log)
    httpd.shutdown()


def test_server(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_rewards.best_of_n.servers.time.sleep", lambda s: None)
    sampling = Sampling(n=2, temperature=0.5, max_new_tokens=9, seed=4)
    generator = ServerGenerator("policy", sampling, url=server.url)
    out = generator.generate(["busy", "b", "too long"], ["0", "1", "2"])
    seeds = [sampling.seed_of(k) for k in ("0", "1")]
    assert out == [[f"busy {seeds[0]} 0", f"busy {seeds[0]} 1"], [f"b {seeds[1]} 0", f"b {seeds[1]} 1"], None]
    path, body = server.log[-1]
    assert path == "/v1/chat/completions" and body["model"] == "policy" and body["max_tokens"] == 9
    with pytest.raises(PolicyFailedError, match="1 completions for n=2"):
        generator.generate(["few"], ["0"])


def test_refused_neighbours_cost_only_themselves(server: Any) -> None:
    """Where none was taken yet, one short prompt of ours tells them from a policy that refuses everything."""
    for n in (1, 2):
        generator = ServerGenerator("policy", Sampling(n=2), url=server.url)
        before = len(server.log)
        for _ in range(2):
            assert generator.generate(["too long"] * n, KEYS[:n]) == [None] * n
        assert len(server.log) - before == 2 * n + 1, "the short one is asked once"
    broken = ServerGenerator("broken", Sampling(n=2), url=server.url)
    for _ in range(2):
        with pytest.raises(PolicyFailedError, match=r"no prompt could be completed, not even 'Name .*max_tokens"):
            broken.generate(["a", "b"], ["0", "1"])


@pytest.mark.parametrize(("model", "code", "said"), [("policy", 0, "prompts 3"), ("broken", 1, "error: no prompt")])
def test_a_run_with_refused_prompts_ends_and_one_without_a_policy_says_so(
    model: str, code: int, said: str, server: Any, folder: str, tmp_path: Path
) -> None:
    rows = [{"prompt": p} for p in ("too long", "too long", "short")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = ["best-of-n", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--judge", folder]
    policy = ["--generator", model, "--backend", "server", "--generator-option", f"url={server.url}", "-n", 2]
    done = CliRunner().invoke(app, [*map(str, [*command, *policy, "--batch-size", 4])])
    assert done.exit_code == code and said in done.output, done.output
    if not code:
        assert (tmp_path / "out" / "scored.jsonl").read_text().count("the generator cannot take this prompt") == 2


def test_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("latent_rewards.best_of_n.servers.time.sleep", waits.append)
    with pytest.raises(PolicyFailedError, match="9/v1: Connect"):
        ServerGenerator("m", Sampling(n=1), url="http://127.0.0.1:9/v1", retries=3).generate(["a"], ["0"])
    assert waits == [1.0, 2.0, 4.0]


def test_vllm_is_asked_for_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our half of the contract with vLLM: one request a prompt with its own seed; a refused prompt costs itself."""
    asked: list[Any] = []

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            asked.append((model, options))

        def get_tokenizer(self) -> Any:
            return types.SimpleNamespace(chat_template="x")

        def chat(self, messages: Any, params: Any, use_tqdm: bool) -> Any:
            if any(m[-1]["content"] == "too long" for m in messages):
                raise ValueError("longer than the maximum model length")
            out = []
            for m, p in zip(messages, params, strict=True):
                texts = [f"{m[-1]['content']} {p.seed} {p.top_k} {i}" for i in range(p.n)]
                out.append(types.SimpleNamespace(outputs=[types.SimpleNamespace(text=t) for t in texts]))
            return out

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampling = Sampling(n=2)
    generator = VLLMGenerator("m", sampling, gpu_memory_utilization=0.4)
    seed = sampling.seed_of("0")
    assert generator.generate(["a", "too long"], ["0", "1"]) == [[f"a {seed} -1 0", f"a {seed} -1 1"], None]
    assert asked == [("m", {"gpu_memory_utilization": 0.4})]
    assert VLLMGenerator("m", sampling).generate(["too long"] * 2, ["0", "1"]) == [None, None]
    monkeypatch.setattr("latent_rewards.best_of_n.servers._CANARY", "too long")
    with pytest.raises(PolicyFailedError, match="no prompt could be completed"):
        VLLMGenerator("m", sampling).generate(["too long"] * 2, ["0", "1"])
    assert generator.generate(["too long"] * 2, ["0", "1"]) == [None, None]
