"""The three workloads, as texts and token ids, built once so that every contestant gets the same."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.engine.loading import EMBEDDED, resolve_model

Pairs = list[tuple[str, str]]


def read_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a pairwise benchmark with single-turn prompts, from the folder $LATENT_REWARDS_DATA."""
    folder = os.environ.get("LATENT_REWARDS_DATA")
    if not folder:
        raise SystemExit("set LATENT_REWARDS_DATA to the folder that holds pairwise/autoj.jsonl.gz and llmbar.jsonl.gz")
    with gzip.open(Path(folder, "pairwise", f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [r for r in rows if isinstance(r["prompt"], str)]


def workloads() -> dict[str, Pairs]:
    """(prompt, completion) pairs.

    group: 16 prompts x 8 completions of some 120 tokens; long: 4 prompts of some 1,000 tokens x 16 short completions;
    unrelated: 96 pairs that share nothing but the judge's words. From Auto-J and LLMBar.
    """
    autoj, llmbar, rng = read_rows("autoj"), read_rows("llmbar"), random.Random(0)
    pool = [r[k][:480] for r in autoj for k in ("chosen", "rejected") if len(r[k]) >= 480]
    middle = [r for r in autoj if 150 < len(r["prompt"]) < 900]
    rng.shuffle(middle)
    group: Pairs = []
    for r in middle[:16]:
        group += [(r["prompt"], c) for c in (r["chosen"][:480], r["rejected"][:480], *rng.sample(pool, 6))]
    long = sorted((r["prompt"] for r in autoj if 3500 < len(r["prompt"]) < 6500), key=len, reverse=True)[:4]
    short = [r["chosen"][:100] for r in llmbar if len(r["chosen"]) > 60]
    rest = [r for r in llmbar + autoj if len(r["prompt"]) < 1200 and len(r["chosen"]) < 1600]
    rng.shuffle(rest)
    return {
        "group": group,
        "long": [(p, c) for p in long for c in rng.sample(short, 16)],
        "unrelated": [(r["prompt"], r[rng.choice(["chosen", "rejected"])]) for r in rest[:96]],
    }


def build(folder: Path, *, limit: int | None, model: str = EMBEDDED) -> Path:
    """Write everything that contestants need into one file and return its path.

    Args:
        folder: where the file goes; its name holds a hash of its content.
        limit: pairs per workload; None is all. The first ones are taken, so that groups stay whole.
        model: the judge.
    """
    judge = HFJudge(model, dtype="float32")
    reward = ProbabilityWeightedReward(judge)
    tokenizer, trie = judge.encoder.tokenizer, judge.trie(reward.prompt)
    value = dict(zip(trie.paths, (reward.prompt.labels.values[i] for i in trie.owners), strict=True))
    first = list(trie.children[0])
    out: dict[str, Any] = {
        "model": resolve_model(model),
        "first_ids": first,
        "first_values": [value.get((i,), 0.0) for i in first],
        "contexts": [list(c) for c in trie.contexts],
        "work": {},
    }
    for name, pairs in workloads().items():
        pairs = pairs[:limit]
        rows = reward.rows([p for p, _ in pairs], [c for _, c in pairs], {})
        chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in pairs]
        out["work"][name] = {
            "pairs": pairs,
            "ids": [e.ids for e in judge.encoder.encode([reward.prompt.render(r) for r in rows])],
            "plain_ids": [list(tokenizer.apply_chat_template(c, return_dict=False)) for c in chats],
        }
    text = json.dumps(out)
    path = folder / f"work-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def spread(n: int, wanted: int) -> list[int]:
    """`wanted` indices out of n, evenly spaced."""
    wanted = max(1, min(n, wanted))
    return [i * n // wanted for i in range(wanted)]
