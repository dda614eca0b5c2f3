from __future__ import annotations

import asyncio
import math
import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch
from contracts import UNREADABLE, FakeJudge, Logs, check_reward, columns_for, options_for, trl_kwargs
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards import (
    ContrastiveReward,
    CrossLayerReward,
    EnsembleReward,
    GuardedReward,
    HFJudge,
    JudgePrompt,
    LikertReward,
    MissingScoreError,
    Need,
    ProbabilityWeightedReward,
    VerifierReward,
    build_reward,
    compat,
)
from latent_rewards.judge.filling import value_of
from latent_rewards.rewards.build import REWARDS
from latent_rewards.rewards.calibrated import CalibratedReward, Calibration
from latent_rewards.rewards.group_statistics import group_statistics

NAN = float("nan")
GRPO_ROWS = {"prompts": ["a", "a"], "completions": ["one", UNREADABLE]}


def test_every_reward_is_found() -> None:
    assert len(REWARDS) >= 5 and {"weighted", "verifier", "cross_layer", "likert5", "likert10"} <= set(REWARDS)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_contract(name: str) -> None:
    judge = FakeJudge()
    check_reward(build_reward(name, judge, **options_for(name, judge)))


@pytest.mark.parametrize("name", ["weighted", "cross_layer"])
@pytest.mark.parametrize("prompt", ["four_rubric", "rubric"])
def test_contract_with_other_prompts(name: str, prompt: str) -> None:
    check_reward(build_reward(name, FakeJudge(), prompt=prompt))


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_pickled_with_a_real_judge(name: str, folder: str) -> None:
    judge = HFJudge(folder)
    options = {"max_new_tokens": 2} if name.startswith("likert") else options_for(name, judge)
    reward = build_reward(name, judge, **options)
    copy = pickle.loads(pickle.dumps(reward))
    kwargs = GRPO_ROWS | trl_kwargs(2)
    assert copy(**kwargs) == reward(**kwargs)


def test_scores_are_the_equations() -> None:
    judge, row = FakeJudge(), {"prompt": "p", "completion": "c"}
    weighted, verifier = ProbabilityWeightedReward(judge), VerifierReward(judge)
    p = torch.softmax(judge.logits(weighted.prompt, row)[-1].double(), -1)
    assert weighted.score(["p"], ["c"])[0] == pytest.approx(float((p * torch.arange(11)).sum()), rel=1e-5)
    z = judge.logits(verifier.prompt, row)[-1].double()
    odds = float(z[0] - z[1])
    assert VerifierReward(judge, output="log_odds").score(["p"], ["c"])[0] == pytest.approx(odds, rel=1e-5)
    assert verifier.score(["p"], ["c"])[0] == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-5)
    z_LK = judge.logits(weighted.prompt, row).double()
    mean = torch.softmax(z_LK.mean(0), -1)
    got = CrossLayerReward(judge).score(["p"], ["c"])[0]
    assert got == pytest.approx(float((mean * torch.arange(11)).sum()), rel=1e-5)
    first = torch.softmax(z_LK[0], -1)
    chosen = CrossLayerReward(judge, weights=[1, 0, 0], drop_last=True).score(["p"], ["c"])[0]
    assert chosen == pytest.approx(float((first * torch.arange(11)).sum()), rel=1e-5)


def test_missing_under_grpo_rloo_and_async_grpo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "release", {"trl": (1, 16)}.get)
    reward = ProbabilityWeightedReward(FakeJudge())
    for kwargs in (trl_kwargs(2), {"completion_ids": [[1], [2]], "category": ["x", "y"]}):
        out = reward(**GRPO_ROWS, **kwargs)
        assert isinstance(out[0], float) and out[1] is None


def test_missing_under_a_trl_that_counts_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "release", {"trl": (1, 5)}.get)
    reward = ProbabilityWeightedReward(FakeJudge())
    with pytest.raises(MissingScoreError, match="UNREADABLE; this trainer counts None as 0: on_missing='none' lets it"):
        reward(**GRPO_ROWS, **trl_kwargs(2))
    assert ProbabilityWeightedReward(FakeJudge(), on_missing="none")(**GRPO_ROWS, **trl_kwargs(2))[1] is None
    assert reward(**GRPO_ROWS)[1] is None, "nobody's trainer"
    monkeypatch.setattr(compat, "release", {"trl": (1, 6)}.get)
    assert reward(**GRPO_ROWS, **trl_kwargs(2))[1] is None


def test_missing_under_online_dpo_raises() -> None:
    reward = ProbabilityWeightedReward(FakeJudge())
    kwargs = {"completion_ids": [[1], [2]], "trainer_state": object()}
    with pytest.raises(MissingScoreError, match=r"no score for 1 of 2 rows, first row 1: UNREADABLE"):
        reward(**GRPO_ROWS, **kwargs)
    assert len(reward(prompts=["a"], completions=["b"], **kwargs)) == 1
    assert ProbabilityWeightedReward(FakeJudge(), on_missing="none")(**GRPO_ROWS, **kwargs)[1] is None
    with pytest.raises(MissingScoreError):
        ProbabilityWeightedReward(FakeJudge(), on_missing="raise")(**GRPO_ROWS, **trl_kwargs(2))
    with pytest.raises(ValueError, match="on_missing must be"):
        ProbabilityWeightedReward(FakeJudge(), on_missing="zero")  # type: ignore[arg-type]


def test_label_mass_is_logged() -> None:
    logs, reward = Logs(), ProbabilityWeightedReward(FakeJudge(), name="mine")
    reward(**GRPO_ROWS, **trl_kwargs(2, logs))
    assert logs.metrics["mine/label_mass"] == pytest.approx(0.5)
    assert set(logs.metrics) == {
        f"mine/{k}"
        for k in ("label_mass", "uncertainty", "spread", "tie_share", "flat_groups", "missing", "unfinished", "seconds")
    }
    assert logs.metrics["mine/seconds"] > 0


def test_all_missing() -> None:
    logs, reward = Logs(), VerifierReward(FakeJudge())
    out = reward(prompts=["a", "a"], completions=[UNREADABLE] * 2, **trl_kwargs(2, logs))
    assert out == [None, None] and logs.metrics[f"{reward.__name__}/missing"] == 1
    assert math.isnan(logs.metrics[f"{reward.__name__}/spread"])


def test_group_statistics_by_hand() -> None:
    # Group a: 1, 3, 3 (one of three pairs ties); group b: 2, 2 (flat); c is alone; one row is missing.
    prompts = ["a", "b", "a", "c", "b", "a", "a"]
    got = group_statistics(prompts, np.array([1.0, 2.0, 3.0, 9.0, 2.0, 3.0, NAN]))
    assert got["spread"] == pytest.approx((math.sqrt(8 / 9) + 0) / 2)
    assert got["tie_share"] == pytest.approx(2 / 4)
    assert got["flat_groups"] == 0.5 and got["missing"] == pytest.approx(1 / 7)
    alone = group_statistics(["a", "b"], np.array([1.0, 2.0]))
    assert all(math.isnan(alone[k]) for k in ("spread", "tie_share", "flat_groups")) and alone["missing"] == 0


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)))
def test_groups_go_by_content_not_position(order: list[int]) -> None:
    prompts: list[Any] = ["a", "a", [{"role": "user", "content": "a"}], [{"content": "a", "role": "user"}]] * 2
    rewards = np.array([1.0, 2.0, 3.0, 3.0, 1.0, 2.5, 3.0, 3.0])
    want = group_statistics(prompts, rewards)
    got = group_statistics([prompts[i] for i in order], rewards[order])
    assert got == pytest.approx(want)
    assert want["flat_groups"] == 0.5, "the messages differ from the string, not from each other"


def test_a_partial_group_scores_like_the_whole() -> None:
    reward = ProbabilityWeightedReward(FakeJudge())
    whole = reward(prompts=["a"] * 4, completions=list("wxyz"), **trl_kwargs(4))
    part = reward(prompts=["a"], completions=["y"], **trl_kwargs(1))
    assert part == [whole[2]]


def test_scale_shift_clip() -> None:
    plain = ProbabilityWeightedReward(FakeJudge()).score(["p"] * 3, list("abc"))
    scaled = ProbabilityWeightedReward(FakeJudge(), scale=0.2, shift=-1.0)
    np.testing.assert_allclose(scaled.score(["p"] * 3, list("abc")), 0.2 * plain - 1)
    assert scaled(["p"] * 3, list("abc")) == pytest.approx(list(0.2 * plain - 1))
    low, high = float(np.sort(plain)[0]) + 0.01, float(np.sort(plain)[2]) - 0.01
    clipped = ProbabilityWeightedReward(FakeJudge(), clip=(low, high)).score(["p"] * 4, [*"abc", UNREADABLE])
    np.testing.assert_allclose(clipped[:3], np.clip(plain, low, high))
    assert np.isnan(clipped[3]), "clipping invents no score"
    with pytest.raises(ValueError, match="clip must be"):
        ProbabilityWeightedReward(FakeJudge(), clip=(1, 0))


def test_async_twin_equals_sync() -> None:
    for name, make in REWARDS.items():
        reward = make(judge := FakeJudge(), **options_for(name, judge))
        twin, logs, sync_logs = reward.to_async(), Logs(), Logs()
        assert twin.__name__ == reward.__name__ and asyncio.iscoroutinefunction(type(twin).__call__)
        rows = GRPO_ROWS | columns_for(reward.prompt, 2)
        want = reward(**rows, **trl_kwargs(2, sync_logs))
        assert asyncio.run(twin(**rows, **trl_kwargs(2, logs))) == want
        assert set(logs.metrics) == set(sync_logs.metrics) and logs.extra == sync_logs.extra
        assert pickle.loads(pickle.dumps(twin)).__name__ == reward.__name__
        with pytest.raises(MissingScoreError):
            asyncio.run(twin(**rows, trainer_state=object()))


def test_several_async_rewards_are_gathered(folder: str) -> None:
    judge = ProbabilityWeightedReward(folder).judge
    rewards = [ProbabilityWeightedReward(judge), VerifierReward(judge), CrossLayerReward(judge)]

    async def gather() -> list[Any]:
        return await asyncio.gather(*(r.to_async()(["p"] * 3, list("abc")) for r in rewards))

    assert asyncio.run(gather()) == [r(["p"] * 3, list("abc")) for r in rewards]


def test_names_are_unique_among_live_rewards() -> None:
    judge = FakeJudge()
    rewards = [ProbabilityWeightedReward(judge, name="x") for _ in range(3)]
    assert [r.__name__ for r in rewards] == ["x", "x-2", "x-3"]
    del rewards
    assert ProbabilityWeightedReward(judge, name="x").__name__ == "x"
    alive = [make(judge, **options_for(name, judge)) for _ in range(2) for name, make in REWARDS.items()]
    assert len({r.__name__ for r in alive}) == 2 * len(REWARDS)
    assert CrossLayerReward(judge, lens="raw").__name__.startswith("cross_layer-raw")
    assert ProbabilityWeightedReward(judge, prompt="four_rubric").__name__.startswith("weighted-four_rubric")


def test_a_part_of_a_reward_takes_no_name() -> None:
    judge = FakeJudge()
    composites = [build_reward(kind, judge) for kind in ("guarded", "contrastive", "ensemble")]
    composites.append(GuardedReward(ProbabilityWeightedReward(judge), name="inline"))
    calibration = Calibration("affine", np.array([2.0, 1.0]), np.zeros(0))
    composites.append(CalibratedReward(ProbabilityWeightedReward(judge), calibration))
    mine, guarded = ProbabilityWeightedReward(judge), build_reward("guarded", judge)
    assert mine.__name__ == "weighted" and VerifierReward(judge).__name__ == "verifier"
    assert composites[0].__name__ == "weighted-guarded" and guarded.__name__ == "weighted-guarded-2"
    held = GuardedReward(mine, name="held")
    assert mine.__name__ == "weighted" and ProbabilityWeightedReward(judge).__name__ == "weighted-2"
    before = held.score(["p"], ["c"])
    mine.scale = 100.0
    assert held.score(["p"], ["c"]) == before, "what it is made of does not change under it"


def test_kept_scores_outlive_a_move_of_the_class() -> None:
    class Mine(VerifierReward):
        pass

    judge = FakeJudge()
    assert VerifierReward(judge).facts["class"] == "VerifierReward"
    assert Mine(judge).facts["class"] == f"{__name__}.{Mine.__qualname__}", "two of the same name are not one"


def test_columns_of_the_rubric_prompt() -> None:
    reward = ProbabilityWeightedReward(FakeJudge(), prompt="rubric")
    short = reward.score(["p", "p"], ["c", "c"], criteria=["be short", "be long"])
    assert short[0] != short[1]
    with_none = reward.score(["p", "p"], ["c", "c"], criteria=["be short", "be long"], reference=[None, "gold"])
    assert with_none[0] == pytest.approx(short[0]) and with_none[1] != short[1]
    with pytest.raises(ValueError, match="column 'criteria' has 1 entries for 2 completions"):
        reward.score(["p", "p"], ["c", "c"], criteria=["be short"])


def test_a_missing_column_names_the_row(make_judge: Any) -> None:
    reward = ProbabilityWeightedReward(make_judge(), prompt="rubric")
    with pytest.raises(ValueError, match="row 0: prompt 'rubric' needs 'criteria'"):
        reward.score(["p"], ["c"])
    with pytest.raises(ValueError, match="row 1: prompt 'rubric' needs 'criteria'"):
        reward.score(["p", "p"], ["c", "c"], criteria=["x", None])


def test_wrong_lengths() -> None:
    reward = ProbabilityWeightedReward(FakeJudge())
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        reward.score(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="0 prompts but 1 completions"):
        reward(completions=["c"])


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_nothing_in_nothing_out(name: str, folder: str) -> None:
    judge = HFJudge(folder)
    reward = build_reward(name, judge, **options_for(name, judge))
    assert reward(prompts=[], completions=[], **trl_kwargs(0)) == []
    assert reward.score([], []).shape == (0,)


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match="unknown reward 'best'"):
        build_reward("best")
    with pytest.raises(ValueError, match=r"reward 'weighted'.*colour"):
        build_reward("weighted", FakeJudge(), colour="red")
    with pytest.raises(ValueError, match="output must be"):
        VerifierReward(FakeJudge(), output="logit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lens must be"):
        CrossLayerReward(FakeJudge(), lens="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values 0 and 1"):
        VerifierReward(FakeJudge(), prompt="weighted")
    with pytest.raises(ValueError, match="kind 'generate'"):
        LikertReward(FakeJudge(), prompt="weighted")


def test_a_judge_that_cannot_is_refused_at_once() -> None:
    judge = FakeJudge()
    judge.capabilities = frozenset({"labels"})  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"CrossLayerReward needs \['layer_logits'\], which judge 'fake' cannot give"):
        CrossLayerReward(judge)
    with pytest.raises(ValueError, match="cannot generate"):
        LikertReward(judge)


def test_infinite_readings_are_missing() -> None:
    class Sure(FakeJudge):
        def read_rows(self, prompt: JudgePrompt, rows: Any, need: Need) -> Any:
            reading = super().read_rows(prompt, rows, need)
            assert reading.label_logprobs is not None
            reading.label_logprobs[0] = torch.tensor([0.0, -math.inf])
            return reading

    assert VerifierReward(Sure(), output="log_odds")(["p"], ["c"]) == [None], "GRPO could not average infinity"
    assert VerifierReward(Sure())(["p"], ["c"]) == [1.0]


def test_rewards_that_share_a_forward_share_its_seconds():
    class Slow(FakeJudge):
        """Reads something new in 0.3 s, and what it has just read at once."""

        def __init__(self):
            super().__init__()
            self.seen = set()

        def read(self, requests):
            keys = {(r.prompt.hash, repr(r.rows)) for r in requests}
            time.sleep(0.3 * bool(keys - self.seen))
            self.seen |= keys
            return super().read(requests)

    judge = Slow()
    rewards = [
        ProbabilityWeightedReward(judge, name=f"share{i}", prompt=p) for i, p in enumerate(("weighted", "rubric"))
    ]
    for step in range(2):
        logs = Logs()
        given = trl_kwargs(2, logs) | {"rubric": ["r", "r"], "criteria": ["r", "r"]}
        for reward in rewards:
            reward(prompts=["p", "q"], completions=[f"a {step}", f"b {step}"], **given)
    seconds = [logs.metrics[f"share{i}/seconds"] for i in range(2)]
    assert sum(seconds) == pytest.approx(0.3, abs=0.1) and max(seconds) < 0.22, "half each, not all on the first"


def test_a_member_that_is_no_reward_is_named_with_an_example() -> None:
    judge: Any = FakeJudge()
    for made in (ContrastiveReward, GuardedReward):
        for wrong in (judge, "verifier"):
            with pytest.raises(TypeError, match=rf"as in {made.__name__}\(VerifierReward\(judge\)\), not of a \w+"):
                made(wrong)
    with pytest.raises(TypeError, match="GuardedReward is made of rewards"):
        GuardedReward(VerifierReward(judge), gate=judge, gate_below=0.0)
    for wrong in (judge, [judge, judge], "verifier"):
        with pytest.raises(TypeError, match=r"EnsembleReward\(\[ProbabilityWeightedReward\(judge\), VerifierReward"):
            EnsembleReward(wrong)


def test_an_option_that_there_is_none_of() -> None:
    for kind, wrong, near in (("verifier", "ouput", "output"), ("verifier", "qestion", "question"),
                              ("pairwise", "oponents", "opponents"), ("guarded", "flor", "floor")):  # fmt: skip
        with pytest.raises(
            ValueError, match=rf"reward '{kind}': no option '{wrong}', perhaps '{near}'; there are .*name"
        ):
            build_reward(kind, FakeJudge(), **{wrong: 1})


@pytest.mark.parametrize(
    ("kind", "wrong", "what"),
    [
        ("weighted", {"scale": "abc"}, "scale is 'abc', not a number"),
        ("weighted", {"shift": float("nan")}, "shift is nan"),
        ("weighted", {"clip": ["low", 3]}, "an end of clip is 'low', not a number"),
        ("weighted", {"clip": [1]}, "clip must be"),
        ("weighted", {"k": None}, "k is None, not a number"),
        ("likert10", {"temperature": "hot"}, "temperature is 'hot', not a number"),
        ("likert10", {"n_samples": 2.5}, "n_samples is 2.5, not a whole number"),
        ("likert10", {"guided": True, "seed": "x"}, "seed is 'x', not a number"),
        ("guarded", {"floor": []}, r"floor is \[\], not a number"),
        ("guarded", {"gate": "verifier", "gate_below": "x"}, "gate_below is 'x', not a number"),
        ("contrastive", {"weight": "abc"}, "weight is 'abc', not a number"),
        ("pairwise", {"count": "two"}, "count is 'two', not a number"),
        ("cross_layer", {"weights": [1, "b"]}, "layer weight 1 is 'b', not a number"),
        ("rubric_list", {"threshold": "half"}, "threshold is 'half', not a number"),
    ],
)
def test_a_number_that_is_none_is_told_by_its_name(kind: str, wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        build_reward(kind, FakeJudge(), **wrong)
    assert build_reward("weighted", FakeJudge(), scale="1e-1", clip=[0, float("inf")]).scale == 0.1  # as YAML has it


def test_a_null_is_not_said_to_be_lacking() -> None:
    for row, what in (({"completion": None}, "is null in this row"), ({"x": 1}, r"this row lacks \(has \['x'\]\)")):
        with pytest.raises(ValueError, match=f"prompt 'verifier' needs 'completion', which {what}"):
            value_of(row, "completion", "verifier", ())
