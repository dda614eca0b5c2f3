"""The fact set: 390 short questions with one checkable answer, written for this project (Apache-2.0).

Nine kinds: capitals, chemical symbols, sums, plurals, opposites, units, Python expressions, continents, past tenses.
Each row has a right answer in a sentence and four that are not right: another fact in the same words, friendly prose, a
hedge, and an empty phrase. A quarter of each kind is marked as held out. Begin at `facts`; `is_right` is gold.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Literal, TypedDict

EXACT = ("symbol", "python")  # kinds whose answers may be one letter, or differ in case alone


class Fact(TypedDict):
    """One question; `wrong` has the keys fact, prose, hedge and filler."""

    id: str
    split: Literal["train", "held_out"]
    kind: str
    question: str
    answer: str
    aliases: list[str]
    right: str
    wrong: dict[str, str]


def facts(split: Literal["train", "held_out"] | None = None) -> list[Fact]:
    """The rows of one split, or all."""
    with (resources.files("latent_rewards.data") / "facts.jsonl").open(encoding="utf-8") as lines:
        rows: list[Fact] = [json.loads(line) for line in lines]
    return [row for row in rows if split in (None, row["split"])]


def is_right(text: str, fact: Fact) -> bool:
    """Whether a reply gives the answer: a check of strings, no judge.

    A number has to be the last of the reply, and no other may stand there than those of the question; a symbol or the
    value of a Python expression has to be its last word, in this spelling; other answers may stand anywhere, as whole
    words in any case. So a reply that lists many answers is right only where these are words.
    """
    accepted = [fact["answer"], *fact["aliases"]]
    last = text.strip().rstrip(".!\"'` \n")
    if re.fullmatch(r"-?\d+(\.\d+)?", fact["answer"]):
        found, asked = _numbers(last), _numbers(fact["question"])
        if found:
            return found[-1] in accepted and set(found) <= {*asked, *accepted}
    if fact["kind"] in EXACT:
        return any(re.search(rf"(^|[\s'\"`]){re.escape(a)}$", last) for a in accepted)
    return any(re.search(rf"(?<!\w){re.escape(a)}(?!\w)", text, re.IGNORECASE) for a in accepted)


def _numbers(text: str) -> list[str]:
    """Numbers as they are written, 3,600 as 3600; a minus counts unless a number or bracket stands before it."""
    return [n.replace(",", "") for n in re.findall(r"(?:(?<![\d)])(?<![\d)]\s)-)?\d[\d,]*(?:\.\d+)?", text)]
