"""The sentences that an evaluation ends with, on results made by hand: one case each."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from latent_rewards.evaluation.verdict import reasons, verdict

Value = tuple[float, float | None, float | None]


def figure(value: float, low: float | None, high: float | None, n: int = 60) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def results(
    scorers: dict[str, Value], gaps: dict[tuple[str, str], Value], facts: dict[str, dict[str, float]] | None = None
) -> Any:
    """Results of one benchmark of 60 pairs; a difference that is not given is +0.01 [-0.1, +0.1]."""
    facts, names = facts or {}, list(scorers)
    differences = []
    for a, b in itertools.combinations(names, 2):
        value = gaps.get((a, b)) or (tuple(-x for x in (gaps[b, a][0], gaps[b, a][2], gaps[b, a][1]))
                                     if (b, a) in gaps else (0.01, -0.1, 0.1))  # fmt: skip
        differences.append({"first": a, "second": b, "metric": "accuracy", **figure(*value)})
    one = {
        "name": "mine", "kind": "pair", "primary": "accuracy", "items": 60, "prompts": 60, "texts": 120,
        "differences": differences,
        "bad_rows": [], "left_out": {}, "over_limit": 0,
        "scorers": {
            n: {"metrics": {"accuracy": figure(*v)}, "facts": facts.get(n, {}), "missing": 0}
            for n, v in scorers.items()
        },
    }  # fmt: skip
    classes = {n: {"class": "ProbeReward" if n.startswith("probe") else "ProbabilityWeightedReward"} for n in names}
    return {"run": {"rewards": classes}, "benchmarks": [one]}


GOOD, CHANCE, LENGTH = (0.75, 0.64, 0.86), (0.55, 0.42, 0.68), (0.55, 0.42, 0.68)
WORSE = (0.267, 0.167, 0.383)
AHEAD, LEVEL, BEHIND = (0.2, 0.08, 0.32), (0.1, -0.05, 0.25), (-0.15, -0.28, -0.02)


@pytest.mark.parametrize(
    ("given", "said", "unsaid"),
    [
        (results({"weighted": GOOD, "length": LENGTH}, {("weighted", "length"): AHEAD}),
         ["weighted is the best score, with accuracy 0.750", "beats length by +0.200", "worth using"], ["items would"]),
        (results({"weighted": GOOD, "length": LENGTH}, {("weighted", "length"): LEVEL}),
         ["not separated from length (+0.100 [-0.050, +0.250])", "about 280 items would settle"], ["worth using"]),
        (results({"weighted": GOOD, "length": (0.9, 0.8, 1.0)}, {("weighted", "length"): BEHIND}),
         ["length alone does better", "do not train"], ["worth using"]),
        (results({"weighted": CHANCE, "length": LENGTH}, {}),
         ["not separated from chance (0.5)", "do not train on it yet", "about 830 items"], ["worth using"]),
        (results({"weighted": (0.4, 0.3, 0.5), "length": LENGTH}, {}),
         ["not even a lead of 0.05", "another prompt or judge"], ["would"]),
        (results({"weighted": (0.43, 0.3, 0.56), "length": LENGTH}, {}),
         ["but these are too few to tell: about 830 items would show a lead of 0.05"], ["another prompt"]),
        (results({"weighted": GOOD, "length": LENGTH}, {("weighted", "length"): (-0.05, -0.2, 0.1)}),
         ["not separated from length", "too few to tell: about 1,200 items would"], ["another prompt"]),
        (results({"weighted": GOOD, "verifier": (0.6, 0.5, 0.7), "length": LENGTH},
                 {("weighted", "length"): AHEAD, ("weighted", "verifier"): (0.15, 0.02, 0.28)}),
         ["It is separated from the next, verifier (+0.150 [+0.020, +0.280])"], []),
        (results({"verifier": (0.6, 0.5, 0.7), "weighted": GOOD, "length": LENGTH}, {("weighted", "length"): AHEAD}),
         ["It is not separated from the next, verifier (-0.010 [-0.100, +0.100])"], []),
        (results({"probe:p": GOOD, "weighted": CHANCE, "length": LENGTH},
                 {("probe:p", "length"): AHEAD, ("probe:p", "weighted"): AHEAD}),
         ["probe:p is the best score", "The probe is separated from the prompted score weighted"], []),
        (results({"probe:p": CHANCE, "weighted": GOOD, "length": LENGTH},
                 {("weighted", "length"): AHEAD, ("weighted", "probe:p"): AHEAD}),
         ["The probe probe:p is below the prompted score (+0.200", "use weighted"], []),
        (results({"probe:p": (0.95, 0.9, 1.0), "weighted": GOOD, "length": LENGTH}, {("weighted", "length"): AHEAD},
                 {"probe:p": {"trained_on": 0.8}}),
         ["weighted is the best score", "80 % of these prompts are among those that probe:p was trained on"],
         ["probe:p is the best"]),
        (results({"weighted": GOOD, "length": LENGTH}, {("weighted", "length"): AHEAD},
                 {"weighted": {"label_mass": 0.03}}),
         ["less than 0.1 of its probability on the labels (weighted 0.030)"], []),
        (results({"weighted": GOOD, "weighted/argmax": GOOD, "length": LENGTH}, {("weighted", "length"): AHEAD}),
         ["worth using"], ["next"]),
        (results({"verifier": GOOD, "weighted": WORSE, "weighted/argmax": CHANCE, "length": LENGTH}, {}),
         ["weighted is below chance (0.267 [0.167, 0.383]): it ranks these rows backwards.", "the next, weighted ("],
         ["argmax"]),
        (results({"verifier": GOOD, "likert/one": WORSE, "likert/mean": WORSE, "length": LENGTH}, {}),
         ["likert/mean is below chance"], ["likert/one is below"]),
        (results({"weighted": WORSE, "length": LENGTH}, {}),
         ["0.267 [0.167, 0.383] on 60 items, which is below chance (0.5): it ranks these rows backwards"],
         ["not separated", "weighted is below"]),
        (results({"weighted": CHANCE, "weighted/argmax": GOOD, "length": LENGTH}, {}),
         ["weighted/argmax, the most probable label of weighted (readout: mode), is the best score"], ["next"]),
        (results({"weighted": (1.0, None, None), "length": (1.0, None, None)}, {}),
         ["mine: 60 items are too few for an interval, so the scores cannot be compared"], ["best", "1.000"]),
    ],
)  # fmt: skip
def test_each_case(given: Any, said: list[str], unsaid: list[str]) -> None:
    told = " ".join(verdict(given))
    assert told.startswith("mine: ")
    assert all(part in told for part in said), told
    assert not any(part in told for part in unsaid), told


def test_nothing_scored() -> None:
    given = results({"weighted": (math.nan, None, None), "length": LENGTH}, {})
    given["benchmarks"][0]["scorers"]["weighted"]["metrics"]["accuracy"]["value"] = None
    assert verdict(given) == [
        "mine: no score could be compared on these 60 items: none was read, or their gold is all the same."
    ]


def bad(*reasons: str) -> list[dict[str, Any]]:
    return [{"file": "mine.jsonl", "row": i, "reason": reason} for i, reason in enumerate(reasons, 1)]


def test_bad_rows_are_told_with_three_reasons_at_most() -> None:
    given = results({"weighted": GOOD, "length": LENGTH}, {})
    given["benchmarks"][0] |= {"bad_rows": bad("same", "empty", "same", "no\nprompt", "x", "y"), "over_limit": 4}
    (told,) = verdict(given)
    why = "rows 1, 3: same; row 2: empty; row 4: no prompt; 2 more reasons in results.json"
    assert told.startswith(f"mine: 6 of 70 rows left out ({why}). weighted is the best score")


def test_reasons_name_few_rows_and_the_file_where_there_are_several() -> None:
    assert reasons(bad(*["same"] * 7), 3) == ["rows 1, 2, 3, 4, 5 and 2 more: same"]
    one, other = bad("same", "same")
    assert reasons([one, other | {"file": "b"}], 3) == ["mine.jsonl row 1: same", "b row 2: same"]


def test_correlations_are_below_chance_where_they_are_below_zero() -> None:
    given = results({"verifier": GOOD, "weighted": WORSE, "probe:p": (-0.3, -0.4, -0.2), "length": LENGTH}, {})
    given["benchmarks"][0]["kind"] = "rating"
    (told,) = verdict(given)
    assert "probe:p is below chance (-0.300 [-0.400, -0.200])" in told and "weighted is below" not in told


def test_scores_that_are_missing_are_told() -> None:
    given = results({"weighted": GOOD, "verifier": WORSE, "length": LENGTH}, {("weighted", "length"): AHEAD})
    scorers = given["benchmarks"][0]["scorers"]
    scorers["weighted"]["missing"] = 12
    text = verdict(given)[0]
    assert "Without a score, of 120 texts: weighted 12;" in text and "has no score" not in text, "a tenth is not many"
    scorers["weighted"]["missing"] = 13
    text = verdict(given)[0]
    assert (
        "weighted has no score for 13 of 120 texts, not read or not readable, so its figure is of the others." in text
    )
    assert "weighted is the best score" in text
    scorers["weighted"] |= {"missing": 60, "metrics": {"accuracy": figure(*GOOD, n=30)}}
    text = verdict(given)[0]
    assert "weighted has no score for 60 of 120 texts, not read or not readable, so it is not compared." in text
    assert "verifier is the best score" in text and "backwards" in text


@pytest.mark.parametrize(("prompts", "n", "said"), [
    (60, 3, "on 3 items, too few to conclude anything from: add rows of other prompts, 30 or more"),
    (2, 60, "on 60 items of 2 prompts, too few to conclude"),
    (1, 60, "on 60 items of 1 prompt, too few to conclude"),
    (10, 60, "on 60 items of 10 prompts, and beats length"),
])  # fmt: skip
def test_few_prompts_conclude_nothing(prompts: int, n: int, said: str) -> None:
    given = results({"weighted": GOOD, "verifier": WORSE, "length": LENGTH}, {("weighted", "length"): AHEAD})
    one = given["benchmarks"][0]
    one["prompts"] = prompts
    for scorer in one["scorers"].values():
        scorer["metrics"]["accuracy"]["n"] = n
    text = verdict(given)[0]
    assert said in text
    if "conclude" in said:
        assert "worth using" not in text and "separated" not in text and "backwards" not in text


def test_what_is_still_wanted_is_said_in_prompts_where_items_share_one() -> None:
    given = results({"weighted": GOOD, "length": LENGTH}, {("weighted", "length"): LEVEL})
    given["benchmarks"][0]["prompts"] = 20
    assert "about 280 items of 92 prompts would settle" in " ".join(verdict(given))
