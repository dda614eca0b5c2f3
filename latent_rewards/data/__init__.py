"""The built-in set: 96 open-ended prompts with four graded answers each, written for this project (Apache-2.0).

Begin at `open_ended`; the rows lie beside it as JSON lines. `prompts` reads prompts for the recipes.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import TypedDict


class GradedPrompt(TypedDict):
    """One prompt with its answers; `gold` 4 is best, 1 is worst; answers stand in hashed order."""

    id: str
    category: str
    prompt: str
    responses: list[str]
    gold: list[int]


def open_ended() -> list[GradedPrompt]:
    """All 96 rows. Grades do not go with length: the mean within-prompt rank correlation is 0."""
    with (resources.files(__name__) / "open_ended.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
