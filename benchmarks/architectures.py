"""Does every causal LM architecture of transformers read what its own plain forward says?

    python -m benchmarks.architectures [--only llama phi3] [--again] [--jobs 16]

Builds a tiny random model of every architecture, with windows, chunks and switches of the rotary frequencies at 400
tokens, and reads texts of 200 to 700 tokens, some of them one token on either side of that edge, with labels of one and
of several tokens: with shared prefixes, without, and batch-invariant; together and alone. The reference is a fresh copy
of the model that reads one text at a time. Writes `results/architectures.json`, from which a later call goes on, and
`.md`. About 25 minutes of CPU time; `--jobs` shares them out among processes of one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.tiny_models import ARCHITECTURES, EDGE, VARIANTS, byte_tokenizer, tiny_model
from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.files.runs import commit
from latent_rewards.judge.labels import Labels

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-4  # nats
WAYS: dict[str, dict[str, Any]] = {
    "shared": {}, "unshared": {"share_prefixes": False}, "batch-invariant": {"batch_invariant": True},
}  # fmt: skip
BODY = "Task: {{ prompt }}\nReply: {{ completion }}\nQuestion: is it good?"


def prompts() -> list[JudgePrompt]:
    """Labels of one token, and of two to three, in the byte tokenizer."""
    return [
        JudgePrompt("one", "label", BODY, labels=Labels.from_mapping({"A": 0, "B": 1, "C": 2})),
        JudgePrompt("several", "label", BODY, labels=Labels.from_mapping({"Yes": 1, "No": 0})),
    ]


def texts(judge: HFJudge, edge: int) -> list[dict[str, str]]:
    """Short rows, rows on both sides of the edge in steps of one token, and a long one, all with one prompt's start."""
    row = {"prompt": "Name three rivers of Europe.", "completion": ""}
    shortest = len(judge.encoder.encode([prompts()[0].render(row)])[0].ids)
    story = "The Danube ends in the Black Sea, the Rhine in the North Sea; the rest is mud. " * 12
    lengths = [shortest + 8, edge - 1, edge, edge + 1, edge + 150]
    rows = [row | {"completion": story[: n - shortest]} for n in lengths if n > shortest]
    return [*rows, {"prompt": "Write a haiku.", "completion": "Gulls."}]


@torch.no_grad()
def plain_log_probs(model: Any, judge: HFJudge, prompt: JudgePrompt, rows: list[dict[str, str]]) -> torch.Tensor:
    """(B, K) by one forward of one text per label token, each on a model that has read nothing before."""
    trie, out = judge.trie(prompt), []
    stateful = bool(judge.blocks.rope)
    for encoded in judge.encoder.encode([prompt.render(row) for row in rows]):
        steps = []
        for context in trie.contexts:
            ids = torch.tensor([[*encoded.ids, *context]])
            fresh = copy.deepcopy(model) if stateful else model
            logits = fresh(input_ids=ids, use_cache=False).logits[0, -1].float()
            steps.append(torch.log_softmax(logits, -1))
        picked = [z[None, list(ids)] for z, ids in zip(steps, trie.children, strict=True)]
        out.append(trie.log_probs(picked, [torch.zeros(1)] * len(steps))[0])
    return torch.stack(out)


def compare(model: Any, edge: int = EDGE, ways: dict[str, dict[str, Any]] = WAYS) -> dict[str, Any]:
    """What one model gives: `difference` in nats by way of reading, how it shares, or why it is refused."""
    tokenizer, asked, need = byte_tokenizer(), prompts(), Need(labels=True)
    out: dict[str, Any] = {"differences": {}}
    want: list[torch.Tensor] = []
    for way, options in ways.items():
        judge = HFJudge(model, tokenizer=tokenizer, **options)
        try:
            _ = judge.forward
        except ValueError as err:
            return {"refused": str(err)}
        rows = texts(judge, edge)
        want = want or [plain_log_probs(model, judge, prompt, rows) for prompt in asked]
        together = [r.label_logprobs for r in judge.read([Request(prompt, rows, need) for prompt in asked])]
        some = [0, len(rows) // 2, len(rows) - 2]
        alone = []
        for prompt in asked:
            judge.forget()
            alone.append(torch.cat([judge.read([Request(prompt, [rows[i]], need)])[0].label_logprobs for i in some]))
        errors = [*((a - w).abs().max() for a, w in zip(together, want, strict=True)),
                  *((a - w[some]).abs().max() for a, w in zip(alone, want, strict=True))]  # fmt: skip
        out["differences"][way] = float(torch.stack(errors).max())
        out[way] = judge.forward.sharing
        if way == "batch-invariant":
            out["invariant"] = all(torch.equal(t[some], a) for t, a in zip(together, alone, strict=True))
    out["spread"] = float(want[0].std(0).max())
    return out


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds of this process's own time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def examine(name: str, seconds: int) -> dict[str, Any]:
    """One line of the table."""
    architecture, options = VARIANTS.get(name, (name, {}))
    started = time.process_time()
    try:
        with limit(seconds):
            model = tiny_model(architecture, **options)
    except Exception as err:  # whatever an architecture says of sizes that it does not take
        return {"not built": f"{type(err).__name__}: {err}"}
    try:
        with limit(seconds):
            out = compare(model)
    except Exception as err:  # a refusal may come with the first long text
        refused = isinstance(err, ValueError) and str(err).endswith(("cannot judge", "cannot be read"))
        out = {"refused": str(err)} if refused else {"failed": f"{type(err).__name__}: {err}"}
    return out | {
        "class": type(model).__name__,
        "torch": torch.__version__,
        "seconds": round(time.process_time() - started, 1),
    }


def cell(text: str, width: int = 160) -> str:
    """One table cell of a message."""
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= width else text[: width - 1] + "…"


def table(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown page."""
    read = {k: v for k, v in results.items() if "differences" in v}
    worst = {k: max(v["differences"].values()) for k, v in read.items()}
    good = [k for k, v in worst.items() if v < TOLERANCE]
    alike = [k for k, v in read.items() if v["spread"] < TOLERANCE]  # all texts score alike: a comparison of nothing
    refused = [k for k, v in results.items() if "refused" in v]
    rest = {k: v for k, v in results.items() if "not built" in v}
    commits = sorted({v["commit"] for v in results.values() if "commit" in v})
    lines = [
        "# Architectures",
        "",
        f"`python -m benchmarks.architectures --jobs 16`, on CPU, transformers {transformers.__version__}, torch "
        f"{' and '.join(sorted({v['torch'] for v in results.values() if 'torch' in v}))}. "
        f"{len(good)} of {len(read)} architectures read within {TOLERANCE:g} nats of the plain forward; {len(refused)} "
        f"refused; {len(rest)} could not be built tiny. At commit {', '.join(commits)}."
        + (f" Their texts all score alike, so that these say nothing: {', '.join(alike)}." if alike else ""),
        "",
        "| architecture | texts are read as | largest difference, nats: shared, unshared, batch-invariant "
        "| same bits in any batch |",
        "|---|---|---|---|",
    ]
    for name, v in sorted(results.items()):
        if "differences" in v:
            numbers = ", ".join(f"{x:.1e}" for x in v["differences"].values())
            lines.append(f"| {name} | {cell(v['shared'])} | {numbers} | {'yes' if v['invariant'] else 'NO'} |")
        elif "refused" in v:
            lines.append(f"| {name} | refused: {cell(v['refused'], 220)} | | |")
        elif "failed" in v:
            lines.append(f"| {name} | FAILED: {cell(v['failed'])} | | |")
    lines += ["", "Not built:", "", *(f"- {name}: {cell(v['not built'])}" for name, v in sorted(rest.items()))]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="architectures or variants; default all")
    parser.add_argument("--again", action="store_true", help="measure those that the result file has, too")
    parser.add_argument("--seconds", type=int, default=120, help="most seconds of CPU time for one architecture")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    args = parser.parse_args()
    path = RESULTS / "architectures.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    names = [n for n in args.only or [*ARCHITECTURES, *VARIANTS] if args.again or n not in results]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        done = {pool.submit(examine, name, args.seconds): name for name in names}
        for future in as_completed(done):
            results[done[future]] = future.result() | {"commit": commit()}
            print(done[future], json.dumps(future.result())[:300], flush=True)
            path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
            path.with_suffix(".md").write_text(table(results))


def _quiet() -> None:
    """One thread, and no word about each judge."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("latent_rewards").setLevel(logging.ERROR)
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
