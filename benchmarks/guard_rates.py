"""Share of honest answers that break a rule of `latent_rewards.rewards.guarded`, by file; no judge is needed.

LATENT_REWARDS_DATA=<folder> python -m benchmarks.guard_rates
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from latent_rewards.evaluation import benchmarks
from latent_rewards.files.outputs import to_json
from latent_rewards.files.runs import provenance
from latent_rewards.rewards.guarded import broken_guards


def main() -> None:
    out = {}
    for name in benchmarks.expand(["pairwise/*"]):
        items = benchmarks.load(name, 600).items
        broken = [broken_guards(i.prompt, i.responses[0]) for i in items]
        out[name] = {"n": len(items), "flagged": sum(map(bool, broken)) / len(items)}
        out[name]["rules"] = dict(Counter(rule for rules in broken for rule in rules))
    text = to_json(provenance("benchmarks.guard_rates") | {"files": out}, indent=1)
    Path("benchmarks/results/guard-rates.json").write_text(text)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
