"""Which of two replies is better: a question for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from latent_rewards.files.types import check_lists
from latent_rewards.judge.hf import Judge, Request
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.rewards.games import in_both_orders, sigmoid
from latent_rewards.rewards.pairwise import PairwiseReward


class Comparison(NamedTuple):
    """What a judge says of two replies.

    Attributes:
        p: P(the first is better), both orders averaged as log-odds; NaN where it could not be read.
        log_odds: the same in nats.
        first_place: P(whichever is shown first is better), 0.5 without a preference for a place.
        criteria: criterion -> P(the first is better by it); empty without criteria.
    """

    p: float
    log_odds: float
    first_place: float
    criteria: dict[str, float]


def compare(
    judge: Judge | str,
    prompt: object,
    a: object,
    b: object,
    *,
    criteria: Sequence[str] | Mapping[str, str] | None = None,
    with_prompt: str | JudgePrompt | None = None,
) -> Comparison:
    """Which of two replies is better, read in both orders in one forward: for notebooks.

    Args:
        judge: a judge, or a model name.
        prompt: what was asked, text or messages.
        a: a reply, text or messages.
        b: another.
        criteria: compare by each of these, names to texts or texts alone, and average their log-odds.
        with_prompt: judge prompt with `{{ other }}`, and `{{ criterion }}` where criteria are given; default
            "pairwise", or "pairwise_criterion".

    Raises:
        TypeError: `criteria` is one text instead of a list.
        ValueError: no criterion in `criteria`, or a prompt that compares nothing.
    """
    if isinstance(criteria, str):
        check_lists(criteria=criteria)
    default = "pairwise" if criteria is None else "pairwise_criterion"
    reward = PairwiseReward(judge, prompt=with_prompt or default, opponents="column", column="other")
    named = criteria if isinstance(criteria, Mapping) else {one: one for one in criteria or ()}
    if criteria is not None and not named:
        raise ValueError("no criteria; leave them out to compare as a whole")
    asked = [{"prompt": prompt, "criterion": text} for text in named.values()] or [{"prompt": prompt}]
    texts = [text for row in asked for text in in_both_orders(row, a, b)]
    (reading,) = reward.judge.read([Request(reward.prompt, texts, reward.need)])
    d, first = reward.odds(reading)
    by = {name: float(sigmoid(x)) for name, x in zip(named, d, strict=False)}
    return Comparison(float(sigmoid(d.mean())), float(d.mean()), float(sigmoid(first).mean()), by)
