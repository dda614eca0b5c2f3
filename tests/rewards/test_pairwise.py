"""Replies against each other: both orders, groups, pivots, anchors, columns; what ties, is alone or unreadable."""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import random
from pathlib import Path
from typing import Any

import choix
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contracts import UNREADABLE, FakeJudge, Logs, trl_kwargs
from tqdm import tqdm

from latent_rewards import HFJudge, JudgePrompt, PairwiseReward, ProbabilityWeightedReward, build_reward, compare
from latent_rewards.files.groups import whole_groups
from latent_rewards.files.sources import open_source
from latent_rewards.judge.reading import Need, Request
from latent_rewards.rewards.pairwise import ALONE, NO_OPPONENT
from latent_rewards.rewards.scorer import Scorer
from latent_rewards.stats.strengths import bradley_terry, mean_win_log_odds, mean_win_rate

PROMPT = JudgePrompt.load("pairwise")
REPLIES = [
    "Seven.",
    "It is nine, I think.",
    "Eleven is prime.",
    "I do not know.",
    "Two.",
    "Primes are odd.",
    "No.",
    "Six",
]
ODDS = np.array([[np.nan, 2.0, -1.0], [-2.0, np.nan, 0.5], [1.0, -0.5, np.nan]])


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _l(judge: Any, first: str, second: str, prompt: str = "Name a prime.") -> float:
    """ln p("A") - ln p("B"), one text read alone."""
    row = {"prompt": prompt, "completion": first, "other": second}
    (reading,) = judge.read([Request(PROMPT, [row], Need(labels=True))])
    values = PROMPT.labels.values  # type: ignore[union-attr]
    return float(reading.label_logprobs[0, values.index(1.0)] - reading.label_logprobs[0, values.index(0.0)])


def _table(judge: Any, replies: list[str]) -> np.ndarray:
    out = np.full((len(replies), len(replies)), np.nan)
    for i, j in itertools.permutations(range(len(replies)), 2):
        out[i, j] = (_l(judge, replies[i], replies[j]) - _l(judge, replies[j], replies[i])) / 2
    return out


# --- strengths, by hand


def test_mean_over_the_opponents() -> None:
    np.testing.assert_allclose(mean_win_log_odds(ODDS), [0.5, -0.75, 0.25], atol=1e-12)
    sure = 1 / (1 + np.exp(-np.array([[2, -1], [-2, 0.5], [1, -0.5]])))
    np.testing.assert_allclose(mean_win_rate(ODDS), sure.mean(1), atol=1e-12)


def test_a_chain_places_those_that_did_not_meet() -> None:
    d = np.full((3, 3), np.nan)
    d[0, 1], d[1, 0], d[1, 2], d[2, 1] = 1.0, -1.0, 2.0, -2.0
    theta = np.array([4 / 3, 1 / 3, -5 / 3])  # gaps of 1 and 2, mean 0
    np.testing.assert_allclose(mean_win_log_odds(d), theta * 3 / 2, atol=1e-12)
    np.testing.assert_allclose(bradley_terry(d, prior=1e-9), theta, atol=1e-6)
    p = [1 / (1 + math.exp(-x)) for x in (1.0, 3.0, 2.0)]
    want = [(p[0] + p[1]) / 2, (1 - p[0] + p[2]) / 2, (1 - p[1] + 1 - p[2]) / 2]
    np.testing.assert_allclose(mean_win_rate(d), want, atol=1e-12)


def test_bradley_terry_is_where_wins_are_as_expected() -> None:
    theta = bradley_terry(ODDS, prior=1e-9)
    wins, expected = 1 / (1 + np.exp(-ODDS)), 1 / (1 + np.exp(-(theta[:, None] - theta[None, :])))
    np.testing.assert_allclose(np.nansum(np.where(np.isnan(ODDS), np.nan, wins - expected), 1), 0, atol=1e-7)
    two = np.array([[np.nan, _logit(0.8)], [-_logit(0.8), np.nan]])
    assert np.diff(bradley_terry(two, prior=1e-9))[0] == pytest.approx(-_logit(0.8), abs=1e-6)


def test_bradley_terry_as_choix_has_it() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 5, 8):
        d = np.triu(rng.normal(0, 2, (n, n)), 1)
        d -= d.T
        want = choix.ilsr_pairwise_dense(1 / (1 + np.exp(-d)) * (1 - np.eye(n)), max_iter=1000)
        np.testing.assert_allclose(bradley_terry(d, prior=1e-9), want - want.mean(), atol=1e-5)


@pytest.mark.parametrize("strength", [mean_win_log_odds, bradley_terry, mean_win_rate])
def test_who_won_everything_stays_finite_and_who_met_nobody_is_unknown(strength: Any) -> None:
    d = np.full((4, 4), np.nan)
    d[0, 1], d[1, 0], d[0, 2], d[2, 0], d[1, 2], d[2, 1] = 60.0, -60.0, 60.0, -60.0, 0.0, 0.0
    got = strength(d)
    assert np.isfinite(got[:3]).all() and got[0] > got[1] and np.isnan(got[3])
    assert got[1] == pytest.approx(got[2], abs=1e-9)
    assert np.isnan(strength(np.full((1, 1), np.nan))).all() and strength(np.zeros((0, 0))).shape == (0,)


# --- what is read


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_group_is_what_each_comparison_alone_gives(make_judge: Any, family: str) -> None:
    table = _table(make_judge(family), REPLIES)
    judge = make_judge(family)
    for strength, function in (
        ("log_odds", mean_win_log_odds), ("bradley_terry", bradley_terry), ("win_rate", mean_win_rate)
    ):  # fmt: skip
        got = PairwiseReward(judge, score=strength).score(["Name a prime."] * 8, REPLIES)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, function(table), atol=5e-5)


def test_the_same_for_any_order_and_grouping_of_the_batch(make_judge: Any) -> None:
    reward = PairwiseReward(make_judge("llama"))
    rows = [(p, r) for p in ("Name a prime.", "Name a number.") for r in REPLIES]
    want = dict(zip(rows, reward.score(*map(list, zip(*rows, strict=True))), strict=True))
    assert len(set(want.values())) == 16
    for seed in range(3):
        mixed = random.Random(seed).sample(rows, len(rows))
        got = reward.score(*map(list, zip(*mixed, strict=True)))
        np.testing.assert_allclose(got, [want[row] for row in mixed], atol=5e-5)
    alone = reward.score(*map(list, zip(*rows[:8], strict=True)))
    np.testing.assert_allclose(alone, [want[row] for row in rows[:8]], atol=5e-5)


def test_swapped_is_exactly_the_mirror(make_judge: Any) -> None:
    judge = make_judge("llama")
    a, b = PairwiseReward(judge).score(["p", "p"], ["One.", "Two."])
    assert a == -b != 0
    assert compare(judge, "p", "One.", "Two.").log_odds == a == -compare(judge, "p", "Two.", "One.").log_odds
    column = PairwiseReward(judge, opponents="column", column="champion")
    forth, back = column.score(["p", "p"], ["One.", "Two."], champion=["Two.", "One."])
    assert forth == -back == a


def test_prompt_and_first_reply_run_once(make_judge: Any) -> None:
    judge, alone = make_judge("llama"), make_judge("llama")
    prompt, replies = "Name a prime number, and say why it is one. " * 8, [r * 12 for r in REPLIES]
    PairwiseReward(judge).score([prompt] * 8, replies)
    together = judge.forward.tokens_run
    for a, b in itertools.permutations(replies, 2):
        _l(alone, a, b, prompt)
        alone.forget()
    assert together < 0.62 * alone.forward.tokens_run


# --- who is compared with whom


def test_pivots_and_anchors_read_less(make_judge: Any) -> None:
    judge = make_judge("llama")
    prompts = ["Name a prime."] * 8
    full = PairwiseReward(judge).requests(
        [{"prompt": p, "completion": r} for p, r in zip(prompts, REPLIES, strict=True)]
    )
    assert len(full[0].rows) == 8 * 7
    for opponents in ("pivots", "anchors"):
        reward = PairwiseReward(judge, opponents=opponents, count=2)  # type: ignore[arg-type]
        rows = reward.rows(prompts, REPLIES, {})
        assert len(reward.requests(rows)[0].rows) == 2 * (2 * 6 + 1)
        got = reward.score(prompts, REPLIES)
        assert np.isfinite(got).all() and got.mean() == pytest.approx(0, abs=1e-6)
        order = [3, 1, 7, 0, 5, 2, 6, 4]
        np.testing.assert_allclose(reward.score(prompts, [REPLIES[i] for i in order]), got[order], atol=5e-5)
    everyone = PairwiseReward(judge, opponents="pivots", count=8)
    np.testing.assert_allclose(
        everyone.score(prompts, REPLIES), PairwiseReward(judge).score(prompts, REPLIES), atol=5e-5
    )


def test_anchors_stand_in_the_middle_of_the_field() -> None:
    judge = FakeJudge()
    reward = PairwiseReward(judge, opponents="anchors", count=1)
    pointwise = ProbabilityWeightedReward(judge).score(["p"] * 7, REPLIES[:7])
    middle = REPLIES[int(np.argsort(pointwise)[3])]
    texts = reward.requests(reward.rows(["p"] * 7, REPLIES[:7], {}))[0].rows
    assert len(texts) == 12 and all(middle in (t["completion"], t["other"]) for t in texts)
    with pytest.raises(ValueError, match="same judge object"):
        PairwiseReward(judge, opponents="anchors", by=ProbabilityWeightedReward(FakeJudge()))


def test_columns_hold_one_opponent_or_several() -> None:
    judge = FakeJudge()
    reward = PairwiseReward(judge, opponents="column")
    said = [{"role": "assistant", "content": "Two."}]
    got = reward.score(["p"] * 4, ["One."] * 4, reference=["Two.", said, ["Two.", "Three."], None])
    third = reward.score(["p"], ["One."], reference=["Three."])[0]
    assert got[0] == got[1] and got[2] == pytest.approx((got[0] + third) / 2) and np.isnan(got[3])
    _, reasons = reward.score_with_reasons(["p"], ["One."], reference=[None])
    assert reasons == [NO_OPPONENT.format("reference")]
    rate = PairwiseReward(judge, opponents="column", score="win_rate", column="champion")
    assert rate.bounds == (0, 1) and rate.inputs == ("completion", "prompt", "champion")
    assert rate.score(["p"], ["One."], champion=["Two."])[0] == pytest.approx(1 / (1 + math.exp(-got[0])))


# --- ties, lone replies, replies that cannot be read


def test_identical_replies_tie_and_count_once(make_judge: Any) -> None:
    judge = make_judge("llama")
    reward = PairwiseReward(judge)
    replies = ["One.", "Two.", "One.", "Three."]
    rows = reward.rows(["Name a prime."] * 4, replies, {})
    assert len(reward.requests(rows)[0].rows) == 6
    got = reward.score(["Name a prime."] * 4, replies)
    d = _table(judge, ["One.", "Two.", "Three."])
    d = np.nan_to_num(d)[np.ix_([0, 1, 0, 2], [0, 1, 0, 2])]
    np.testing.assert_allclose(got, d.sum(1) / 3, atol=5e-5)
    assert got[0] == got[2]
    assert reward.score(["p"] * 3, ["One."] * 3).tolist() == [0.0] * 3
    assert PairwiseReward(judge, score="win_rate").score(["p"] * 2, ["One."] * 2).tolist() == [0.5] * 2


def test_alone_there_is_no_score() -> None:
    reward = PairwiseReward(FakeJudge())
    scores, reasons = reward.score_with_reasons(["p", "q", "q"], ["One.", "One.", "Two."])
    assert np.isnan(scores[0]) and np.isfinite(scores[1:]).all() and reasons == [ALONE, None, None]
    assert np.isnan(reward.score(["p"], ["One."])).all() and reward.score([], []).shape == (0,)
    assert reward(prompts=["p"], completions=["One."], **trl_kwargs(1)) == [None]


def test_one_that_cannot_be_read_takes_nothing_from_the_others() -> None:
    judge = FakeJudge()

    def either(prompt: Any, row: Any, of: Any = FakeJudge.logits) -> torch.Tensor:
        z = of(judge, prompt, row)
        return torch.full_like(z, float("nan")) if UNREADABLE in str(row.get("other")) else z

    judge.logits = either  # type: ignore[method-assign]
    for options in ({}, {"opponents": "pivots", "count": 3}):
        reward = PairwiseReward(judge, **options)  # type: ignore[arg-type]
        scores, reasons = reward.score_with_reasons(["p"] * 4, ["One.", UNREADABLE, "Two.", "Three."])
        assert np.isnan(scores[1]) and reasons[1] == UNREADABLE
        np.testing.assert_allclose(scores[[0, 2, 3]], reward.score(["p"] * 3, ["One.", "Two.", "Three."]), atol=1e-12)


def test_a_reply_cut_in_its_thought_is_no_measure_for_others() -> None:
    reward = PairwiseReward(FakeJudge(), opponents="pivots", count=4)
    replies = ["<think>I wonder", "<think>Easy.</think>One.", "Two.", "Three."]
    games = reward._games(reward.rows(["p"] * 4, replies, {}))
    assert len(games) == 6, "three pivots, and the cut one meets each"


def test_what_a_trainer_sees() -> None:
    logs = Logs()
    reward = PairwiseReward(FakeJudge(), name="duel")
    prompts = [[{"role": "user", "content": p}] for p in ("p", "q", "p", "p", "r")]
    replies = [[{"role": "assistant", "content": c}] for c in ("One.", "One.", "Two.", "Three.", "One.")]
    out = reward(prompts=prompts, completions=replies, **trl_kwargs(5, logs))
    assert out[1] is None and out[4] is None and sum(x for x in out if x is not None) == pytest.approx(0, abs=1e-6)
    plain = reward.score(["p", "q", "p", "p", "r"], ["One.", "One.", "Two.", "Three.", "One."])
    assert [x for x in out if x is not None] == plain[[0, 2, 3]].tolist()
    assert logs.metrics["duel/comparisons"] == 3 / 5 and logs.metrics["duel/alone"] == 2 / 5
    assert 0 < logs.metrics["duel/first_place"] < 1 and 0 <= logs.metrics["duel/orders_agree"] <= 1
    assert (
        pickle.loads(pickle.dumps(reward)).score(["p", "p"], ["a", "b"])[0] == reward.score(["p", "p"], ["a", "b"])[0]
    )


# --- made by name, and for notebooks


def test_by_name() -> None:
    judge = FakeJudge()
    reward = build_reward("pairwise", judge, opponents="anchors", by="verifier", count=1)
    assert isinstance(reward, PairwiseReward) and reward.by is not None and reward.by.kind == "verifier"
    for options, message in (
        ({"opponents": "all"}, "opponents must be one of"), ({"score": "elo"}, "score must be one of"),
        ({"count": 0}, "count must be at least 1"), ({"prompt": "verifier"}, "compares nothing"),
        ({"opponents": "column", "score": "bradley_terry"}, "no group"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            build_reward("pairwise", judge, **options)


def test_compare(make_judge: Any) -> None:
    judge: HFJudge = make_judge("llama")
    found = compare(judge, "Name a prime.", REPLIES[0], REPLIES[1])
    first, second = _l(judge, REPLIES[0], REPLIES[1]), _l(judge, REPLIES[1], REPLIES[0])
    assert found.log_odds == pytest.approx((first - second) / 2, abs=5e-5) and found.criteria == {}
    assert found.p == pytest.approx(1 / (1 + math.exp(-found.log_odds)))
    assert found.first_place == pytest.approx((1 / (1 + math.exp(-first)) + 1 / (1 + math.exp(-second))) / 2, abs=5e-5)
    by = compare(
        judge, "Name a prime.", REPLIES[0], REPLIES[1], criteria={"brief": "It is short.", "right": "It is so."}
    )
    assert set(by.criteria) == {"brief", "right"}
    assert by.log_odds == pytest.approx(np.mean([_logit(p) for p in by.criteria.values()]))
    swapped = compare(judge, "Name a prime.", REPLIES[1], REPLIES[0], criteria=["It is short.", "It is so."])
    assert swapped.log_odds == -by.log_odds and list(swapped.criteria) == ["It is short.", "It is so."]
    with pytest.raises(ValueError, match="no criteria"):
        compare(judge, "p", "a", "b", criteria=[])


# --- files


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_file_is_read_in_whole_groups(tmp_path: Path, ending: str, size: int) -> None:
    rows = [{"prompt": p, "completion": c} for p, n in (("p", 3), ("q", 1), ("r", 4), ("s", 2)) for c in REPLIES[:n]]
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    chunks = list(whole_groups(open_source(str(path)).chunks(size), lambda row: row["prompt"]))
    assert [row for chunk in chunks for row in chunk.rows] == rows
    assert all(a.rows[-1]["prompt"] != b.rows[0]["prompt"] for a, b in itertools.pairwise(chunks))
    assert all(len(c.faults) == len(c.rows) and (c.table is None or c.table.to_pylist() == c.rows) for c in chunks)
    reward = PairwiseReward(FakeJudge())
    scorer = Scorer({"pairwise": reward}, {}, tqdm(file=io.StringIO()))
    got = [x for chunk in scorer.chunks(open_source(str(path)), size) for x in scorer(chunk)["pairwise"]]
    want = reward.score([r["prompt"] for r in rows], [r["completion"] for r in rows])
    assert got == [None if np.isnan(x) else x for x in want.tolist()]
