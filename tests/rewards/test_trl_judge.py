"""TRL's pairwise judge on `PairwiseReward`, with a stand-in for the base class that TRL 1.16 no longer has."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latent_rewards import HFJudge, MissingScoreError, compare
from latent_rewards.rewards.trl_judge import pairwise_judge
from tests.contracts import UNREADABLE, FakeJudge


def has_judges() -> bool:
    try:
        return find_spec("trl.experimental.judges") is not None
    except ModuleNotFoundError:
        return False


PAIRS = [["one", "two"], ["seven", "eight"], ["same", "same"]]


class BasePairwiseJudge(ABC):
    """As in TRL 1.0, `trl/experimental/judges/judges.py`."""

    @abstractmethod
    def judge(self, prompts: list[str], completions: list[list[str]], shuffle_order: bool = True) -> list[int]: ...


@pytest.fixture
def older_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("trl.experimental.judges")
    module.BasePairwiseJudge = BasePairwiseJudge
    monkeypatch.setitem(sys.modules, "trl.experimental.judges", module)


@pytest.mark.usefixtures("older_trl")
def test_it_decides_as_both_orders_do() -> None:
    judge = FakeJudge()
    made = pairwise_judge(judge)
    assert isinstance(made, BasePairwiseJudge)
    said = [compare(judge, "p", a, b) for a, b in PAIRS]
    ranks = made.judge(["p"] * 3, PAIRS)
    assert ranks == [int(c.log_odds < 0) for c in said] and ranks[2] == 0, "a tie counts for the first, as in TRL"
    assert made.judge(["p"] * 3, PAIRS, shuffle_order=False) == ranks
    assert made.judge(["p"] * 3, PAIRS, return_scores=True) == pytest.approx([c.p for c in said])
    swapped = made.judge(["p"] * 3, [pair[::-1] for pair in PAIRS], return_scores=True)
    assert swapped == pytest.approx([1 - c.p for c in said]) and swapped[2] == 0.5
    tuples: Any = [tuple(pair) for pair in PAIRS]
    assert made.judge(["p"] * 3, tuples) == ranks, "the trainers zip"


@pytest.mark.usefixtures("older_trl")
def test_a_pair_that_cannot_be_read_never_counts_for_the_second() -> None:
    pairs = [["one", "two"], ["one", UNREADABLE]]
    with pytest.raises(MissingScoreError, match=f"1 of 2 pairs cannot be read, first 1: {UNREADABLE}"):
        pairwise_judge(FakeJudge()).judge(["p"] * 2, pairs)
    lenient = pairwise_judge(FakeJudge(), on_missing="none")
    assert lenient.judge(["p"] * 2, pairs)[1] == -1
    with pytest.raises(MissingScoreError):
        lenient.judge(["p"] * 2, pairs, return_scores=True)
    with pytest.raises(ValueError, match="row 1: expected two completions, got 'one text'"):
        lenient.judge(["p"] * 2, [["a", "b"], "one text"])


def test_trl_without_judges_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl.experimental.judges", None)
    with pytest.raises(ImportError, match=r"has no BasePairwiseJudge: give its trainers reward_funcs=\[PairwiseReward"):
        pairwise_judge(FakeJudge())


@pytest.mark.skipif(not has_judges(), reason="this TRL has no judges")
def test_a_step_of_online_dpo_with_the_judge(policy: str, folder: str, tmp_path: Path) -> None:
    """TRL that has judges: the trainer takes it, and asks of each pair of completions which is better."""
    from test_trainers import online_dpo

    judge = pairwise_judge(HFJudge(folder, dtype="float32", device="cpu"))
    asked: list[Any] = []
    ask = judge.judge
    judge.judge = lambda *args, **kwargs: asked.append((args, ask(*args, **kwargs))) or asked[-1][1]
    trainer = online_dpo(policy, None, tmp_path, judge=judge)
    trainer.train()
    (prompts, pairs), ranks = asked[0]
    assert len(prompts) == len(pairs) == len(ranks) and set(ranks) <= {0, 1}
    for prompt, (a, b), rank in zip(prompts, pairs, ranks, strict=True):
        assert rank == int(compare(judge.reward.judge, prompt, a, b).log_odds < 0)
    assert trainer.state.global_step == 1
