"""Tokens that replies read against each other cost: full comparison, pivots and anchors, beside prompts read apart.

    python -m benchmarks.comparisons        # writes benchmarks/results/comparisons.{json,md,png}

N replies of 100 tokens to a prompt of 100, drawn words, the embedded judge's tokens. "Read" is what the forward ran,
every shared token once; "apart" is the same texts each read whole, as a server without a prefix cache reads them. The
last line is N separate prompts: each reply once against one opponent, in one order.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch

from benchmarks.rubric_cost import text
from latent_rewards import HFJudge, PairwiseReward, Request
from latent_rewards.files.markdown import table
from latent_rewards.files.runs import commit

RESULTS = Path(__file__).parent / "results"
SIZES = (4, 8, 16)
WAYS: dict[str, dict[str, Any]] = {
    "full comparison": {"opponents": "group"},
    "pivots, k = 2": {"opponents": "pivots", "count": 2},
    "anchors, k = 2": {"opponents": "anchors", "count": 2},
}
SEPARATE = "N separate prompts"


def measure(judge: HFJudge, prompt: str, replies: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Texts, comparisons and tokens of one way to score N replies."""
    reward = PairwiseReward(judge, **options)
    forward = judge.forward
    judge.forget()
    forward.cache.clear()
    before = forward.tokens_run
    scores = reward.score([prompt] * len(replies), replies)
    assert len(scores) == len(replies)
    read = forward.tokens_run - before
    rows = reward.rows([prompt] * len(replies), replies, {})
    requests = [*reward.requests(rows), *(reward.by.requests(rows) if reward.by is not None else [])]
    return {
        "comparisons": len(requests[0].rows) // 2, "texts": sum(len(r.rows) for r in requests), "tokens_read": read,
        "tokens_apart": sum(lengths(judge, r) for r in requests),
    }  # fmt: skip


def lengths(judge: HFJudge, request: Request) -> int:
    """Tokens of a request's texts, each whole."""
    return sum(len(e.ids) for e in judge.encoder.encode(request.prompt.render_all(request.rows)))


def separate(judge: HFJudge, prompt: str, replies: list[str]) -> dict[str, Any]:
    """Each reply against the next, one order, every prompt read whole."""
    reward = PairwiseReward(judge)
    others = [*replies[1:], replies[0]]
    rows = [{"prompt": prompt, "completion": a, "other": b} for a, b in zip(replies, others, strict=True)]
    tokens = lengths(judge, Request(reward.prompt, rows, reward.need))
    return {"comparisons": len(rows), "texts": len(rows), "tokens_read": tokens, "tokens_apart": tokens}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens over N, a line for each way, read and apart."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    colours = dict(zip([*WAYS, SEPARATE], ("#2a78d6", "#e07b00", "#2e9e5b", "#888888"), strict=True))
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.4, 3.6))
        for way, colour in colours.items():
            own = [r for r in rows if r["way"] == way]
            n = [r["n"] for r in own]
            read = [r["tokens_read"] for r in own]
            axes.plot(n, read, "o-", color=colour, lw=2, ms=5, label=way if way == SEPARATE else f"{way}: read")
            if way != SEPARATE:
                apart = [r["tokens_apart"] for r in own]
                axes.plot(n, apart, "o--", color=colour, lw=1, ms=4, alpha=0.6, label=f"{way}: each text apart")
        axes.set(xscale="log", yscale="log", xlabel="replies to the prompt, N", ylabel="tokens", xticks=SIZES)
        axes.set_xticks(SIZES, [str(n) for n in SIZES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)


def written(result: dict[str, Any]) -> str:
    """The table."""
    head = ["N", "way", "comparisons", "texts", "tokens read", "tokens of the same texts apart"]
    head += ["times less", "a reply"]
    cells = [
        [str(r["n"]), r["way"], str(r["comparisons"]), str(r["texts"]), str(r["tokens_read"]), str(r["tokens_apart"]),
         f"{r['tokens_apart'] / r['tokens_read']:.1f}", f"{r['tokens_read'] / r['n']:.0f}"]
        for r in result["rows"]
    ]  # fmt: skip
    said = (
        f"`{result['command']}`; commit {result['commit']}. A prompt of {result['prompt_tokens']} tokens, replies of "
        f"about {result['reply_tokens']}, tokens of SmolLM2; every comparison in both orders. Tokens read are those "
        "that the forward ran, what texts share once. The last line of each N is N prompts read whole, each reply "
        "against one opponent in one order. Anchors count the pointwise reads that choose them."
    )
    return "\n".join(
        ["# What comparisons cost", "", said, "", *table(head, cells), "", "![tokens](comparisons.png)", ""]
    )


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    judge, rng = HFJudge("embedded", dtype="float32", device="cpu"), random.Random(0)
    prompt, replies = text(rng, judge, 100), [text(rng, judge, 100) for _ in range(max(SIZES))]
    judge.forward  # noqa: B018  load and check before anything is counted
    rows = []
    for n in SIZES:
        for way, options in WAYS.items():
            rows.append({"n": n, "way": way, **measure(judge, prompt, replies[:n], options)})
            print(rows[-1], flush=True)
        rows.append({"n": n, "way": SEPARATE, **separate(judge, prompt, replies[:n])})
    sizes = [len(judge.encoder.tokenizer(t)["input_ids"]) for t in (prompt, *replies)]
    result = {
        "command": "python -m benchmarks.comparisons", "commit": commit(), "prompt_tokens": sizes[0],
        "reply_tokens": round(sum(sizes[1:]) / len(replies)), "rows": rows,
    }  # fmt: skip
    (RESULTS / "comparisons.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "comparisons.md").write_text(written(result), encoding="utf-8")
    draw(rows, RESULTS / "comparisons.png")
    print(written(result))


if __name__ == "__main__":
    main()
