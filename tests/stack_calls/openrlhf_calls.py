"""Rewards of rows as OpenRLHF's executor asks for them: python openrlhf_calls.py SERVER < rows.json > scores.json."""

import asyncio
import json
import sys
from pathlib import Path

from openrlhf.utils.agent import SingleTurnAgentExecutor

import latent_rewards.serving.adapters

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def main() -> None:
    rows = json.load(sys.stdin)
    file = str(Path(latent_rewards.serving.adapters.__file__).parent / "openrlhf.py")
    prompts = [CHAT.format(r["prompt"]) for r in rows]
    queries = [p + r["completion"] + "<|im_end|>" for p, r in zip(prompts, rows, strict=True)]
    labels = [r["reference"] for r in rows]

    async def score() -> dict[str, list[float]]:
        by_file, by_http = SingleTurnAgentExecutor([file]), SingleTurnAgentExecutor([sys.argv[1] + "/get_reward"])
        found = await by_file._fetch_rewards_via_func(queries, prompts, labels)
        answers = await by_http._fetch_rewards_via_http(queries, prompts, labels)
        return {
            "_fetch_rewards_via_func": [float(info["rewards"][0]) for info in found],
            "_fetch_rewards_via_http": [float(x) for info in answers for x in info["rewards"]],
        }

    print(json.dumps(asyncio.run(score())))


if __name__ == "__main__":
    main()
