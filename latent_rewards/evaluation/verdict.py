"""What a person should make of an evaluation, in one or two sentences a benchmark: pure, on its results."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from latent_rewards.evaluation.results import BenchmarkResult, Results
from latent_rewards.files import markdown
from latent_rewards.files.types import JsonObject
from latent_rewards.judge.describe import LOW_MASS
from latent_rewards.stats.bootstrap import Figure
from latent_rewards.stats.power import FEWEST, MOST_ROWS, about, rows_needed

ARGMAX = "/argmax"  # a column beside a weighted rating, which nobody asks for
FEW = 10  # prompts below which an interval is not relied on: chance alone can leave all draws on one side
USEFUL = 0.05  # a lead that is worth looking for
UNREAD = 0.1  # share of texts without a score from which on a scorer is told by itself
SHOWN = 5  # rows that are named for one reason
_CHANCE = {"pair": 0.5, "rating": 0.0, "list": 0.0}


class _Gap(NamedTuple):
    """A paired difference, first minus second."""

    value: float
    low: float
    high: float
    n: int

    @property
    def apart(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def verdict(results: Results) -> list[str]:
    """Sentences of a run: one paragraph for each benchmark, and what holds for all of them."""
    classes = {name: str(of.get("class", "")) for name, of in results["run"].get("rewards", {}).items()}
    return [*(f"{b['name']}: {of_benchmark(b, classes)}" for b in results["benchmarks"]), *_mass(results)]


def of_benchmark(b: BenchmarkResult, classes: dict[str, str] | None = None) -> str:
    """Rows that could not be used, the best score, what it is separated from by its paired interval, and what to do.

    Args:
        b: figures of one benchmark.
        classes: class of each reward, to tell probes from prompted scores.
    """
    seen = {n: s["facts"].get("trained_on", 0.0) for n, s in b["scorers"].items()}
    rated, unread = _rated(b)
    clean = {n: f for n, f in rated.items() if not seen[n]}
    told = [
        f"{_percent(seen[n])} of these prompts are among those that {n} was trained on, so its figure says nothing "
        "here; use other rows for it."
        for n in rated
        if seen[n]
    ]
    left = [*_left_out(b), *unread]
    if not clean:
        none = f"no score could be compared on these {b['items']} items: none was read, or their gold is all the same."
        return " ".join([*left, *(told or [none])])
    best = max(clean, key=lambda n: clean[n]["value"] or 0.0)
    probes = {n for n in clean if (classes or {}).get(n) == "ProbeReward"}
    said = [_judgement(b, best, clean[best])]
    if min(b["prompts"], clean[best]["n"]) >= FEW:
        said += [_next(b, best, clean, probes), *_backwards(b, best, clean)]
    return " ".join(filter(None, (*left, *said, *told)))


def reasons(bad: Sequence[JsonObject], most: int) -> list[str]:
    """Why rows could not be used: "rows 1, 4: empty response", at most so many reasons, and how many more there are."""
    files = {x["file"] for x in bad}
    found: dict[tuple[str, str], list[str]] = {}
    for x in bad:
        why = textwrap.shorten(str(x["reason"]), 120, placeholder=" ...")
        found.setdefault((f"{x['file']} " if len(files) > 1 else "", why), []).append(str(x["row"]))
    told = [
        f"{file}row{'s' * (len(at) > 1)} {', '.join(at[:SHOWN])}{_more(len(at) - SHOWN)}: {why}"
        for (file, why), at in list(found.items())[:most]
    ]
    others = len(found) - most
    return told if others <= 0 else [*told, f"{others} more reason{'s' * (others > 1)} in results.json"]


def _more(n: int) -> str:
    return f" and {n} more" if n > 0 else ""


def _left_out(b: BenchmarkResult) -> list[str]:
    """A sentence on the bad rows of all rows that there were; nothing without any."""
    bad = len(b["bad_rows"])
    rows = b["items"] + bad + b["over_limit"] + sum(b["left_out"].values())
    return [f"{bad} of {rows} rows left out ({'; '.join(reasons(b['bad_rows'], 3))})."] if bad else []


def _rated(b: BenchmarkResult) -> tuple[dict[str, Figure], list[str]]:
    """The primary figure of each scorer that has nearly all items, and a sentence on each that lacks many texts.

    Length is none of them.
    """
    found = {n: s["metrics"][b["primary"]] for n, s in b["scorers"].items() if n != "length"}
    most = max((f["n"] for f in found.values()), default=0)
    kept = {n: f for n, f in found.items() if f["value"] is not None and f["n"] >= (1 - UNREAD) * most}
    missing, told = {n: b["scorers"][n]["missing"] for n in found}, []
    for n in found:
        if missing[n] > UNREAD * b["texts"]:
            what = "its figure is of the others" if n in kept else "it is not compared"
            lost = f"{missing[n]} of {b['texts']} texts"
            told.append(f"{n} has no score for {lost}, not read or not readable, so {what}.")
    if some := ", ".join(f"{n} {m}" for n, m in missing.items() if 0 < m <= UNREAD * b["texts"]):
        told.append(f"Without a score, of {b['texts']} texts: {some}; `scores.jsonl.gz` has null there.")
    return kept, told


def _judgement(b: BenchmarkResult, best: str, figure: Figure) -> str:
    """Whether the best score beats chance and length, and what follows."""
    value, chance, length = figure["value"] or 0.0, _CHANCE[b["kind"]], _gap(b, best, "length")
    items = f"{figure['n']} item{'s' * (figure['n'] != 1)}"
    prompts = min(b["prompts"], figure["n"])
    if prompts < figure["n"]:
        items += f" of {prompts} prompt{'s' * (prompts != 1)}"
    if figure["low"] is None or figure["high"] is None:
        are = "is" if items == "1 item" else "are"
        return f"{items} {are} too few for an interval, so the scores cannot be compared: add rows of other prompts."
    label = f", the most probable label of {_of(best)} (readout: mode)," if best.endswith(ARGMAX) else ""
    head = f"{best}{label} is the best score, with {b['primary']} {_shown(figure)} on {items}"
    if prompts < FEW:
        return f"{head}, too few to conclude anything from: add rows of other prompts, {FEWEST} or more."
    if figure["high"] < chance:
        return f"{head}, which is below chance ({chance:g}): it ranks these rows backwards, so do not train on it."
    if figure["low"] <= chance:
        need = rows_needed(value - chance, figure["low"], figure["high"], figure["n"])
        told = _wanted(need, value - chance, figure["low"] - chance, figure["high"] - chance, figure["n"], prompts)
        return f"{head}, which is not separated from chance ({chance:g}): do not train on it yet; {told}."
    if length is None:
        return f"{head}; length could not be compared."
    if length.low > 0:
        return f"{head}, and beats length by {length}: it tells more than length, so it is worth using on such rows."
    if length.high < 0:
        return f"{head}, but length alone does better ({length}): do not train on it as it is."
    need = rows_needed(length.value, length.low, length.high, length.n)
    return f"{head}, but is not separated from length ({length}): {_wanted(need, *length, prompts)}."


def _wanted(need: int | None, value: float, low: float, high: float, n: int, prompts: int) -> str:
    """What to do about a lead that is not separated: how many items would tell, or that no number will."""
    if value <= 0 and high < USEFUL:
        return (
            f"not even a lead of {USEFUL:g} is in the interval, so more rows of this kind are not expected to help: "
            "try another prompt or judge"
        )
    if value <= 0:
        wide = _items(rows_needed(USEFUL, low, high, n) or 0, n, prompts)
        return f"it is not ahead here, but these are too few to tell: about {wide} would show a lead of {USEFUL:g}"
    if need is None or need > MOST_ROWS:
        return "the lead is too small for any number of rows one would collect: try another prompt or judge"
    return (
        f"about {_items(need, n, prompts)} would settle a lead of this size (80 % power, by the width of this interval)"
    )


def _items(need: int, n: int, prompts: int) -> str:
    """So many items, of so many prompts where here several of n items share one."""
    more = f" of {about(math.ceil(need * prompts / n))} prompts" if prompts < n else ""
    return f"{about(need)} items{more}"


def _next(b: BenchmarkResult, best: str, rated: dict[str, Figure], probes: set[str]) -> str:
    """Against the prompted score where one of both is a probe, else against the next reward."""
    others = [n for n in rated if _of(n) != _of(best) and not n.endswith(ARGMAX)]
    prompted = [n for n in others if n not in probes]
    if best in probes and prompted:
        other = max(prompted, key=lambda n: rated[n]["value"] or 0.0)
        gap = _gap(b, best, other)
        if gap:
            return f"The probe is {'' if gap.apart else 'not '}separated from the prompted score {other} ({gap})."
    below = [n for n in probes if (gap := _gap(b, best, n)) and n != best]
    if below:
        gap = _gap(b, best, below[0])
        how = "below" if gap and gap.apart else "no better than"
        return f"The probe {below[0]} is {how} the prompted score ({gap}): use {best}, which needs no training."
    if not others:
        return ""
    other = max(others, key=lambda n: rated[n]["value"] or 0.0)
    gap = _gap(b, best, other)
    return f"It is {'' if gap.apart else 'not '}separated from the next, {other} ({gap})." if gap else ""


def _backwards(b: BenchmarkResult, best: str, rated: dict[str, Figure]) -> list[str]:
    """The other rewards that are below chance, of several ratings by their mean."""
    chance, found = _CHANCE[b["kind"]], []
    for n, f in rated.items():
        asked = n == _of(n) or n.endswith("/mean")
        if asked and n != best and f["high"] is not None and f["high"] < chance:
            found.append(f"{n} is below chance ({_shown(f)}): it ranks these rows backwards.")
    return found


def _shown(f: Figure) -> str:
    return markdown.figure(f["value"], f["low"], f["high"])


def _of(name: str) -> str:
    """The reward that a scorer is a figure of."""
    reward, _, figure = name.rpartition("/")
    return reward if figure in ("one", "mean", "mode", "greedy", "argmax") else name


def _gap(b: BenchmarkResult, first: str, second: str) -> _Gap | None:
    for d in b["differences"]:
        if {d["first"], d["second"]} == {first, second} and d["value"] is not None and d["low"] is not None:
            value, low, high = d["value"], d["low"], float(d["high"] or 0.0)
            return _Gap(value, low, high, d["n"]) if d["first"] == first else _Gap(-value, -high, -low, d["n"])
    return None


def _mass(results: Results) -> list[str]:
    """The scorers whose labels the judge was not about to say."""
    lowest: dict[str, float] = {}
    for b in results["benchmarks"]:
        for name, s in b["scorers"].items():
            mass = s["facts"].get("label_mass")
            if mass is not None and mass < LOW_MASS:
                lowest[name] = min(mass, lowest.get(name, 1.0))
    if not lowest:
        return []
    some = ", ".join(f"{name} {mass:.3f}" for name, mass in lowest.items())
    return [
        f"The judge puts less than {LOW_MASS:g} of its probability on the labels ({some}): it was about to write "
        "something else, so these scores are weak evidence; try a prompt in its own format, or another judge."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
