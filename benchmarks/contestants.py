"""One contestant in a process of its own: `python contestants.py NAME WORK.json THREADS`, driven over pipes.

Commands come as JSON lines {"work": name, "rows": [indices]}; answers go back as {"cpu", "wall", "rss", "scores"}.
Imports nothing of this repository at the top, so that it runs in any environment with the contestant's packages.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from typing import Any

BATCH = 8
HALF = 15


def expected(logits: Any, values: list[float]) -> list[float]:
    """Expected rating from logits (or log-probs) of the labels' first tokens, one row per pair."""
    out = []
    for row in logits:
        top = max(row)
        weights = [math.exp(x - top) for x in row]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return out


class HF:
    """Base: the judge through transformers in bfloat16, left-padded batches of 8 in the order given."""

    scores = "first"
    head = "AutoModelForCausalLM"
    dtype = "bfloat16"

    def __init__(self, work: dict[str, Any]) -> None:
        import torch
        import transformers

        self.torch, self.work = torch, work
        torch.manual_seed(0)
        extra = {"num_labels": 1} if "Sequence" in self.head else {}
        load = getattr(transformers, self.head).from_pretrained
        self.model = load(work["model"], dtype=getattr(torch, self.dtype), **extra).eval().requires_grad_(False)
        self.model.config.pad_token_id = 0

    def run(self, name: str, rows: list[int]) -> list[float] | None:
        ids = self.ids(name)
        order = self.order([ids[i] for i in rows])
        out: list[Any] = [None] * len(rows)
        for start in range(0, len(rows), BATCH):
            batch = order[start : start + BATCH]
            with self.torch.no_grad():
                logits = self.forward(**self.pad([ids[rows[i]] for i in batch]))
            for i, row in zip(batch, logits, strict=True):
                out[i] = row
        return expected(out, self.work["first_values"]) if self.scores else None

    def ids(self, name: str) -> list[list[int]]:
        return self.work["work"][name]["ids"]

    def order(self, ids: list[list[int]]) -> list[int]:
        return list(range(len(ids)))

    def pad(self, rows: list[list[int]]) -> dict[str, Any]:
        width = max(map(len, rows))
        return {
            "input_ids": self.torch.tensor([[0] * (width - len(r)) + r for r in rows]),
            "attention_mask": self.torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        }

    def pick(self, logits: Any) -> list[list[float]]:
        return logits[:, self.work["first_ids"]].float().tolist()


class Generate(HF):
    """generate(max_new_tokens=1) and the logits of the new token."""

    def forward(self, **batch: Any) -> list[list[float]]:
        out = self.model.generate(
            **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
        )
        return self.pick(out.logits[0])


class Forward(HF):
    """One forward, last logits only, batches sorted by length."""

    def order(self, ids: list[list[int]]) -> list[int]:
        return sorted(range(len(ids)), key=lambda i: len(ids[i]))

    def forward(self, **batch: Any) -> list[list[float]]:
        at = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return self.pick(self.model(**batch, position_ids=at, logits_to_keep=1, use_cache=False).logits[:, -1])


class AllHidden(Forward):
    """LAGER-style: every hidden state of every position, label logits of every layer."""

    def forward(self, **batch: Any) -> list[list[float]]:
        at = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        out = self.model(**batch, position_ids=at, output_hidden_states=True, use_cache=False)
        weight = self.model.lm_head.weight[self.work["first_ids"]]
        layers = self.torch.stack([h[:, -1] @ weight.T for h in out.hidden_states])
        assert layers.shape[0] == self.model.config.num_hidden_layers + 1
        return self.pick(out.logits[:, -1])


class LogLikelihood(Forward):
    """As lm-evaluation-harness: one request per distinct label context, log-softmax of the whole (B, T, V) logits."""

    def run(self, name: str, rows: list[int]) -> list[float] | None:
        for context in self.work["contexts"][1:]:
            ids = [self.work["work"][name]["ids"][i] + context for i in rows]
            order = self.order(ids)
            for start in range(0, len(rows), BATCH):
                with self.torch.no_grad():
                    self.forward(**self.pad([ids[i] for i in order[start : start + BATCH]]))
        return super().run(name, rows)

    def forward(self, **batch: Any) -> list[list[float]]:
        at = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = self.model(**batch, position_ids=at, use_cache=False).logits
        return self.pick(self.torch.log_softmax(logits, dim=-1)[:, -1])


class SequenceClassifier(Forward):
    """A reward model of the same size with a random head: the chat alone, no judge prompt."""

    scores = ""
    head = "AutoModelForSequenceClassification"

    def ids(self, name: str) -> list[list[int]]:
        return self.work["work"][name]["plain_ids"]

    def forward(self, **batch: Any) -> list[list[float]]:
        return self.model(**batch, use_cache=False).logits.float().tolist()


class Reference(HF):
    """float32, one text at a time: what the scores are compared with."""

    dtype = "float32"

    def __init__(self, work: dict[str, Any]) -> None:
        super().__init__(work)
        from latent_rewards import HFJudge, ProbabilityWeightedReward

        judge = HFJudge(work["model"], dtype="float32", share_prefixes=False, batch_tokens=1)
        self.exact = ProbabilityWeightedReward(judge)

    def run(self, name: str, rows: list[int]) -> Any:
        ids, pairs = self.ids(name), [self.work["work"][name]["pairs"][i] for i in rows]
        with self.torch.no_grad():
            logits = [
                self.pick(self.model(self.torch.tensor([ids[i]]), logits_to_keep=1).logits[:, -1])[0] for i in rows
            ]
        exact = self.exact.score([p for p, _ in pairs], [c for _, c in pairs])
        return {"first": expected(logits, self.work["first_values"]), "exact": exact.tolist()}


class Ours:
    """This package from texts to scores, nothing kept from one run to the next."""

    scores = "exact"
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, work: dict[str, Any]) -> None:
        from latent_rewards import HFJudge, ProbabilityWeightedReward

        self.work, self.judge = work, HFJudge(work["model"], dtype="bfloat16", **self.options)
        self.reward = ProbabilityWeightedReward(self.judge)
        assert self.judge.forward.usable

    def run(self, name: str, rows: list[int]) -> list[float] | None:
        self.judge.forget()
        self.judge.forward.cache.clear()
        self.judge.encoder._cache.clear()
        pairs = [self.work["work"][name]["pairs"][i] for i in rows]
        return self.read([p for p, _ in pairs], [c for _, c in pairs])

    def read(self, prompts: list[str], completions: list[str]) -> list[float] | None:
        return self.reward.score(prompts, completions).tolist()


class OursCompiled(Ours):
    """With compile=True."""

    options = {"compile": True}  # noqa: RUF012


class OursHalf(Ours):
    """Hidden state at half depth, as a probe reads it; the layers above never run."""

    scores = ""

    def __init__(self, work: dict[str, Any]) -> None:
        from latent_rewards import HFJudge, JudgePrompt, Need

        self.work, self.judge = work, HFJudge(work["model"], dtype="bfloat16", **self.options)
        self.prompt, self.need = JudgePrompt.load("weighted"), Need(hidden=frozenset({HALF}), hidden_lens="raw")
        assert self.judge.forward.usable

    def read(self, prompts: list[str], completions: list[str]) -> list[float] | None:
        from latent_rewards import Request

        rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
        (reading,) = self.judge.read([Request(self.prompt, rows, self.need)])
        assert reading.hidden[HALF].isfinite().all()
        return None


class OursHalfCompiled(OursHalf):
    """Half depth with compile=True."""

    options = {"compile": True}  # noqa: RUF012


class VLLM:
    """vLLM on CPU, its best setting for the job: prefix cache, `logprob_token_ids` of the labels' first tokens."""

    scores = "first"

    def __init__(self, work: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self.work = work
        self.llm = LLM(
            work["model"], dtype=work.get("dtype", "bfloat16"), max_model_len=4096, max_num_batched_tokens=4096,
            enable_prefix_caching=True, enforce_eager=True,
        )  # fmt: skip
        self.sampling = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=work["first_ids"])

    def run(self, name: str, rows: list[int]) -> list[float] | None:
        self.llm.reset_prefix_cache()
        ids = self.work["work"][name]["ids"]
        out = self.llm.generate([{"prompt_token_ids": ids[i]} for i in rows], self.sampling, use_tqdm=False)
        logprobs = [[o.outputs[0].logprobs[0][i].logprob for i in self.work["first_ids"]] for o in out]
        return expected(logprobs, self.work["first_values"])


class LlamaCpp:
    """llama.cpp, F16, one text after the other, each going on from the longest prefix it shares with the last."""

    scores = "first"

    def __init__(self, work: dict[str, Any]) -> None:
        import llama_cpp

        self.work = work
        threads = int(os.environ["OMP_NUM_THREADS"])
        self.llm = llama_cpp.Llama(
            work["gguf"], n_ctx=4096, n_batch=1024, n_ubatch=1024, n_threads=threads, n_threads_batch=threads,
            verbose=False, flash_attn=True,
        )  # fmt: skip

    def run(self, name: str, rows: list[int]) -> list[float] | None:
        ids = self.work["work"][name]["ids"]
        self.llm.reset()
        out: list[Any] = [None] * len(rows)
        last: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: ids[rows[i]]):
            row = ids[rows[i]]
            keep = next(
                (n for n, (a, b) in enumerate(zip(last, row, strict=False)) if a != b), min(len(last), len(row))
            )
            self.llm.n_tokens = min(keep, len(row) - 1)
            self.llm.eval(row[self.llm.n_tokens :])
            logits = self.llm._ctx.get_logits()
            out[i] = [logits[t] for t in self.work["first_ids"]]
            last = row
        return expected(out, self.work["first_values"])


class Gemm:
    """Not a contestant: rate of bfloat16 matrix products, at the judge's own shapes and at a large square one."""

    scores = ""

    def __init__(self, work: dict[str, Any]) -> None:
        import torch
        from transformers import AutoConfig

        c = AutoConfig.from_pretrained(work["model"])
        d, f, kv = c.hidden_size, c.intermediate_size, c.hidden_size // c.num_attention_heads * c.num_key_value_heads
        self.torch = torch
        shapes = [
            [(4096, d, f)] * 2 + [(4096, f, d)] + [(4096, d, d)] * 2 + [(4096, d, kv)] * 2,
            [(2048, 2048, 2048)] * 2,
        ]
        rand = lambda *s: torch.randn(*s, dtype=torch.bfloat16)  # noqa: E731
        self.sets = [[(rand(t, a), rand(b, a)) for t, a, b in one] for one in shapes]

    def run(self, name: str, rows: list[int]) -> dict[str, float]:
        best_wall = best_cpu = 0.0
        for one in self.sets:
            flops = sum(2 * x.shape[0] * x.shape[1] * w.shape[0] for x, w in one)
            for _ in range(4):
                wall, cpu = time.perf_counter(), time.process_time()
                for x, w in one:
                    self.torch.nn.functional.linear(x, w)
                best_cpu = max(best_cpu, flops / (time.process_time() - cpu))
                best_wall = max(best_wall, flops / (time.perf_counter() - wall))
        return {"flops_per_cpu_second": best_cpu, "flops_per_second": best_wall}


CONTESTANTS = {
    "gemm": Gemm, "reference": Reference, "generate": Generate, "forward": Forward, "all-hidden": AllHidden,
    "loglikelihood": LogLikelihood, "seqcls": SequenceClassifier, "llama.cpp": LlamaCpp, "vllm": VLLM,
    "ours": Ours, "ours-compiled": OursCompiled, "ours-half": OursHalf, "ours-half-compiled": OursHalfCompiled,
}  # fmt: skip


def cpu_seconds() -> float:
    """CPU time of this process and of its living and finished children."""
    total = time.process_time() + sum(os.times()[2:4])
    try:
        import psutil
    except ImportError:
        return total
    for child in psutil.Process().children(recursive=True):
        total += sum(child.cpu_times()[:2])
    return total


def peak_gb() -> float:
    """Largest resident set of this process so far, plus what living children hold now."""
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        import psutil
    except ImportError:
        return total / 1e9
    return (total + sum(c.memory_info().rss for c in psutil.Process().children(recursive=True))) / 1e9


def main() -> None:
    """Load, warm up, then answer commands."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    name, path, threads = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        work = json.load(file)
    started = time.perf_counter()
    if name not in ("vllm", "llama.cpp"):
        import torch

        torch.set_num_threads(int(threads))
    contestant = CONTESTANTS[name](work)
    if name != "reference":
        for each, content in work["work"].items():
            n = len(content["pairs"])
            contestant.run(each, list(range(min(n, 24 if "compiled" in name else 4))))
    ready = {"ready": name, "scores": contestant.scores, "setup_seconds": time.perf_counter() - started}
    print(json.dumps(ready), file=pipe, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        cpu, wall = cpu_seconds(), time.perf_counter()
        scores = contestant.run(task["work"], task["rows"])
        out = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "rss": peak_gb(), "scores": scores}
        print(json.dumps(out), file=pipe, flush=True)


if __name__ == "__main__":
    main()
