"""The best of some candidates, with reasons: a question for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latent_rewards.files.types import check_lists
from latent_rewards.judge.opening import open_judge
from latent_rewards.judge.reading import Judge
from latent_rewards.rewards.base import Reward
from latent_rewards.rewards.latent import ProbabilityWeightedReward
from latent_rewards.rewards.rubric import RubricReward


@dataclass(frozen=True)
class Selection:
    """Candidates in order.

    Attributes:
        index: the best one.
        ranking: all that have a score, best first.
        scores: (N,) as given; NaN where a candidate could not be read.
        reasons: for each candidate what the score is made of: criterion -> P(it holds); without criteria nothing, but
            why a score is missing.
    """

    index: int
    ranking: list[int]
    scores: list[float]
    reasons: list[dict[str, float | str | None]]


def select(
    judge: Judge | str = "embedded",
    prompt: object = None,
    candidates: Sequence[object] = (),
    criteria: Mapping[str, str] | Sequence[str] | None = None,
) -> Selection:
    """The best candidate for a prompt, by a judge's expected rating or by criteria, all read in one forward.

    Args:
        judge: a judge, or a model name; the default is a small one to try things with: `select(prompt=..., ...)`.
        prompt: what was asked, text or messages.
        candidates: replies, texts or messages.
        criteria: names to what must hold, or a list of it; the score is then the mean of P(criterion holds).

    Raises:
        TypeError: one text instead of a list, of candidates or of criteria.
        ValueError: no prompt, no candidate, or none that could be read; names why.
    """
    if prompt is None:
        raise ValueError(
            "select needs a prompt: select(judge, prompt, candidates), or select(prompt=..., candidates=...)"
        )
    check_lists(candidates=candidates)
    if isinstance(criteria, str):
        check_lists(criteria=criteria)
    if not len(candidates):
        raise ValueError("candidates must be a list of at least one reply")
    held: Judge = open_judge(judge)
    prompts, given = [prompt] * len(candidates), list(candidates)
    reasons: list[dict[str, float | str | None]]
    if criteria is None:
        reward: Reward = ProbabilityWeightedReward(held)
        reasons = [{} for _ in given]
    else:
        texts = criteria if isinstance(criteria, Mapping) else {text: text for text in criteria}
        items = [{"criterion": text, "name": name} for name, text in texts.items()]
        rubric = RubricReward(held, criteria=items, aggregate="mean", unreadable="none")
        reward = rubric
        reasons = [{item["name"]: item["p"] for item in row} for row in rubric.explain(prompts, given)]
    scores, whys = reward.score_with_reasons(prompts, given)
    for reason, why in zip(reasons, whys, strict=True):
        if why is not None:
            reason["no score"] = why
    ranking = [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
    if not ranking:
        raise ValueError(f"no candidate could be read; the first: {whys[0]}")
    return Selection(ranking[0], ranking, [float(x) for x in scores], reasons)
