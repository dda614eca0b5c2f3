"""What every reward, prompt file and judge must do, and the doubles that the tests share."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from latent_rewards import Judge, JudgePrompt, Need, Reading, Request, Reward, build_reward
from latent_rewards.judge.hf import Row
from latent_rewards.judge.prompts import to_text
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.probes.questions import Question, features_of
from latent_rewards.rewards.build import REWARDS

UNREADABLE = "UNREADABLE"
SLOT_VALUES = {
    "prompt": "Name a prime number.",
    "completion": "Seven is prime.",
    "criteria": "The number must be prime.",
    "criterion": "It names a prime number.",
    "reference": "",
    "other": "Eight is prime.",
    "feedback": "It is right and short.",
    "aspect": "short",
}


class FakeJudge(Judge):
    """A judge whose readings are scripted by the text alone: every row that says UNREADABLE is NaN.

    Args:
        layers: number of inner layers L.
        answers: what `generate` returns for every row, cycled over the samples.
    """

    name = "fake"
    fingerprint = "fake"
    revision = "fake"
    capabilities = frozenset({"labels", "hidden", "layer_logits", "target", "generate"})

    def __init__(self, *, layers: int = 3, answers: Sequence[str] = ("Good. [RESULT] 4", "Fair. [RESULT] 2")) -> None:
        self.layers, self.answers = layers, list(answers)
        self.reads = 0

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        need.check(prompt)
        if need.labels and prompt.labels is None:
            raise ValueError(f"prompt {prompt.name!r} has no labels")

    def logits(self, prompt: JudgePrompt, row: Row) -> torch.Tensor:
        """(L+1, K) made from a hash of what is judged."""
        text = prompt.hash + "\0".join(to_text(row[s]) for s in sorted(row) if row[s] is not None)
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:6], "little")
        k = len(prompt.labels) if prompt.labels else 5
        out = torch.randn(self.layers + 1, k, generator=torch.Generator().manual_seed(seed))
        return torch.full_like(out, float("nan")) if UNREADABLE in to_text(row["completion"]) else out

    @property
    def n_layers(self) -> int:
        return self.layers

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        return [self.read_rows(*request) for request in requests]

    def read_rows(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        self.reads += 1
        k = len(prompt.labels) if prompt.labels else 5
        z = torch.stack([self.logits(prompt, r) for r in rows]) if rows else torch.zeros(0, self.layers + 1, k)
        logp = torch.log_softmax(z[:, -1], -1) + np.log(0.5)
        reasons = tuple(UNREADABLE if bool(torch.isnan(x).any()) else None for x in z)
        hidden = {layer: z[:, layer] for layer in need.hidden}
        if need.target:  # five tokens
            return Reading(reasons=reasons, target_logprobs=logp)
        return Reading(logp, logp.exp().sum(-1), hidden, {lens: z for lens in need.layer_logits}, reasons)

    def generate(
        self, prompt: JudgePrompt, rows: Sequence[Row], *, n: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[str | None]]:
        out: list[list[str | None]] = []
        for row in rows:
            bad = UNREADABLE in to_text(row["completion"])
            out.append([None if bad else self.answers[i % len(self.answers)] for i in range(n)])
        return out


class Logs:
    """Collects what a reward logs through TRL's hooks."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.extra: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        assert isinstance(value, float)
        self.metrics[name] = value

    def log_extra(self, name: str, values: list[Any]) -> None:
        self.extra[name] = values


def trl_kwargs(n: int, logs: Logs | None = None) -> dict[str, Any]:
    """The keywords with which TRL 1.16 GRPO and RLOO call a reward, besides prompts and completions."""
    logs = logs or Logs()
    return {
        "completion_ids": [[1, 2, 3]] * n,
        "category": ["any"] * n,
        "environments": None,
        "trainer_state": object(),
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
    }


def columns_for(prompt: JudgePrompt, n: int) -> dict[str, list[str]]:
    """Dataset columns that the prompt needs besides prompt and completion."""
    return {s: [value_for(prompt, s)] * n for s in prompt.slots if s not in ("prompt", "completion")}


def value_for(prompt: JudgePrompt, slot: str) -> str:
    """A value of a slot; a target is never empty."""
    return SLOT_VALUES[slot] or ("Seven." if slot == prompt.target else "")


def options_for(name: str, judge: Any) -> dict[str, Any]:
    """What a reward of this name needs besides a judge: a probe fitted to nothing, criteria."""
    if name == "rubric_list":
        return {"criteria": ["It names a prime number.", {"criterion": "It rambles.", "points": -1, "name": "long"}]}
    if name == "pairwise":
        return {"opponents": "column", "column": "other"}
    if name == "panel":
        return {"path": a_panel(judge)}
    if name != "probe":
        return {}
    prompt = JudgePrompt.load("weighted")
    fake = isinstance(judge, FakeJudge)
    width = len(prompt.labels or ()) if fake else judge.blocks.config.hidden_size
    config = ProbeConfig(judge.name, judge.revision, prompt.hash, (1,), width)
    weight = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    return {"path": Probe(config, {"weight": weight, "bias": torch.zeros(1)}, prompt)}


def check_reward(reward: Reward) -> None:
    """The contract with TRL (house style, "Reward contract"); the judge must be a `FakeJudge`."""
    assert not isinstance(reward, nn.Module)
    assert isinstance(reward.__name__, str) and reward.__name__
    assert not inspect.iscoroutinefunction(type(reward).__call__)
    prompts = ["a", "b", "a", "b"]
    completions: list[Any] = ["one", "two", UNREADABLE, "four"]
    logs = Logs()
    kwargs = trl_kwargs(4, logs) | columns_for(reward.prompt, 4)
    out = reward(prompts=prompts, completions=completions, **kwargs)
    assert len(out) == 4 and out[2] is None
    assert all(type(x) is float for i, x in enumerate(out) if i != 2)
    assert reward.__name__ not in logs.extra, "the trainer logs it itself"
    assert all(len(column) == 4 for column in logs.extra.values())
    keys = {k.removeprefix(reward.__name__ + "/") for k in logs.metrics}
    assert {"spread", "tie_share", "flat_groups", "missing", "seconds"} <= keys
    assert logs.metrics[f"{reward.__name__}/missing"] == 0.25
    messages = [[{"role": "assistant", "content": c}] for c in completions]
    chats = [[{"role": "user", "content": p}] for p in prompts]
    assert reward(prompts=chats, completions=messages, **kwargs) == out, "messages and strings must agree"
    scores = reward.score(prompts, completions, **columns_for(reward.prompt, 4))
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float64 and scores.shape == (4,)
    assert np.isnan(scores[2]) and [float(x) for x in scores[[0, 1, 3]]] == [out[0], out[1], out[3]]
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == reward.__name__
    assert again(prompts=prompts, completions=completions, **kwargs) == out
    assert reward(prompts=[], completions=[], **trl_kwargs(0)) == []


# Another value for every option of every reward, and the options with which all of them count.
BASE: dict[str, dict[str, Any]] = {
    "guarded": {"gate": "verifier", "gate_below": 0.5, "gate_slope": 1.0, "relevance": 0.5},
    "ensemble": {"of": ("weighted", "cross_layer"), "how": "weighted", "weights": [1.0, 2.0]},
    "rubric_list": {"criteria": ["It is short."]},
    "pairwise": {"opponents": "anchors"},
    "likelihood": {"of": "reference"},
    "weighted": {"readout": "lower"},
}
OTHER: dict[str, Any] = {
    "prompt": "four_rubric", "scale": 2.0, "shift": 1.0, "clip": (0.25, 0.5), "on_missing": "raise",
    "output": "log_odds", "lens": "raw", "weights": [1.0, 2.0, 3.0, 4.0], "drop_last": True, "guided": True,
    "feedback": False, "temperature": 0.1, "n_samples": 3, "max_new_tokens": 7, "seed": 9, "statistic": "one",
    "of": "cross_layer", "floor": -5.0, "guards": ("blank", "echo"), "gate": "weighted", "gate_below": 0.25,
    "gate_slope": None, "relevance": 0.25, "against": "shuffled", "weight": 0.5, "how": "mean", "location": [1.0, 2.0],
    "scales": [1.0, 2.0], "aspect": "second", "criteria": ["It is long."], "criteria_column": "checks",
    "aggregate": "min", "normalise": "sum", "baseline": True,
    "threshold": 0.25, "dropout": 0.5, "unreadable": "leave_out",
    "opponents": "pivots", "score": "win_rate", "count": 1, "column": "reference_reply",
    "by": "cross_layer", "readout": "median", "k": 2.0,
    "split": "lines", "steps_column": "moves", "reasoning": "keep", "unfinished": 0.25,
    "thought_tags": [("<plan>", "</plan>")], "opened": True, "running": True, "missing": "without",
    "question": "How short is the reply?",
}  # fmt: skip
OTHER_OF: dict[str, dict[str, Any]] = {
    "verifier": {"prompt": "verifier_hardened"}, "likert5": {"prompt": "likert10"}, "likert10": {"prompt": "likert5"},
    "ensemble": {"of": ("cross_layer", "weighted"), "weights": [2.0, 1.0]},
    "rubric_list": {"prompt": "criterion_scale"}, "pairwise": {"prompt": "pairwise_criterion"},
    "steps": {"prompt": "step_correct", "aggregate": "rise"},
    "likelihood": {
        "of": "completion", "reasoning": "strip",
        "prompt": replace(JudgePrompt.load("likelihood_reference"), system="Read."),
    },
}  # fmt: skip
# Probes and panels have their own prompt, a rating that is written asks for a form of its own, and a likelihood asks
# nothing; an aspect is for completions, see test_likelihood.
NO_OPTION = {
    *((name, option) for name in ("probe", "panel") for option in ("prompt", "question")),
    *((name, "question") for name in ("likert5", "likert10", "likelihood")), ("likelihood", "aspect"),
}  # fmt: skip
NO_SCORE_CHANGES = {
    "self",
    "judge",
    "name",
    "strict",
    "reward",
    "rewards",
    "scale_points",
    "judges",  # as another judge
    "statistics",  # as location and scales
    "ranks",  # where scores are learnt
}  # "reward" to "scale_points": by `of`, by name


def score_options(name: str) -> list[str]:
    """Every option of a reward of the registry that changes its scores, read off its signatures."""
    judge = FakeJudge()
    made = REWARDS[name](judge, **options_for(name, judge))
    kinds = [REWARDS[name], *(kind.__init__ for kind in type(made).__mro__ if "__init__" in vars(kind))]
    found = [p for kind in kinds[:-1] for p in inspect.signature(kind).parameters.values()]  # the last is object's
    return sorted({p.name for p in found if p.kind is not p.VAR_KEYWORD} - NO_SCORE_CHANGES)


def check_fingerprint(name: str) -> None:
    """Every option that changes scores changes the fingerprint; the name, a pickle and a second making do not."""
    judge = FakeJudge()
    made_by = {"probe": two_outputs, "panel": a_panel}.get(name)
    base = BASE.get(name, {}) | ({} if made_by is None else {"path": made_by(judge)})
    want = build_reward(name, judge, **base).fingerprint
    again = build_reward(name, judge, **base, name="another-name")
    assert pickle.loads(pickle.dumps(again)).fingerprint == again.fingerprint == want
    found = {}
    for option in score_options(name):
        if (name, option) in NO_OPTION:
            continue
        left = {k: v for k, v in base.items() if (option, k) != ("how", "weights")}  # which go with one way alone
        value = (
            made_by(judge, last=1e-6)
            if made_by is not None and option == "path"
            else (OTHER | OTHER_OF.get(name, {}))[option]
        )
        found[option] = build_reward(name, judge, **(left | {option: value})).fingerprint
    other = FakeJudge()
    other.fingerprint = "other"  # type: ignore[misc]
    found["judge"] = build_reward(name, other, **base).fingerprint
    assert len(found) > 5 and len({want, *found.values()}) == len(found) + 1, found


def two_outputs(judge: FakeJudge, last: float = 0.0) -> Probe:
    """A probe with two outputs whose last weight is moved by `last`."""
    prompt = JudgePrompt.load("weighted")
    config = ProbeConfig(judge.name, "fake", prompt.hash, (1,), 11, outputs=("first", "second"))
    weight = torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
    weight[-1, -1] += last
    return Probe(config, {"weight": weight, "bias": torch.zeros(2)}, prompt)


def a_panel(judge: Any, last: float = 0.0) -> Panel:
    """A panel of three questions, two of them criteria, whose last weight is moved by `last`."""
    criterion = JudgePrompt.load("criterion")
    asked = (
        Question("weighted", JudgePrompt.load("weighted")),
        Question("prime", criterion, "It names a prime number."),
        Question("long", criterion, "It rambles.", -1),
    )
    features = features_of(asked, ("mean", "sd"))
    w = np.array([0.5, -0.1, 0.25, 0.125, -0.5, 0.3 + last])
    zero, one = np.zeros(len(w)), np.ones(len(w))
    return Panel(asked, features, w, zero, one, 0.75, judge.name, judge.revision)


def check_prompt(path: Any) -> JudgePrompt:
    """A shipped prompt file: loads, names its source, and puts constants, task, completion, question in this order."""
    prompt = JudgePrompt.load(path)
    assert prompt.name == path.stem and prompt.source.strip() and prompt.system.strip()
    assert path.read_text(encoding="utf-8").startswith("# "), "the first line says what the prompt is for"
    row = {s: value_for(prompt, s) for s in prompt.slots}
    dialogue = prompt.render(row)
    order = [s.slot for t in dialogue.turns for s in t.segments if s.slot in ("prompt", "completion")]
    assert order == ["prompt", "completion"] if prompt.completion else order == ["prompt"]
    assert dialogue.target == (None if prompt.target is None else row[prompt.target])
    last = dialogue.turns[-1].segments[-1]
    assert last.slot is None and len(last.text) < 1000, "a short question of ours comes last"
    assert JudgePrompt.load(path).hash == prompt.hash
    return prompt


def check_judge(judge: Any, prompt: JudgePrompt, rows: Sequence[Row]) -> None:
    """What any judge owes: exact shapes, float32 on the CPU, label mass, the same answer for the same rows."""
    assert judge.name and judge.capabilities <= {"labels", "hidden", "layer_logits", "target", "generate"}
    need = Need(labels=True)
    judge.check(prompt, need)
    reading = judge.read([Request(prompt, rows, need)])[0]
    assert prompt.labels is not None
    b, k = len(rows), len(prompt.labels)
    assert len(reading) == b and reading.label_logprobs.shape == (b, k) and reading.label_mass.shape == (b,)
    assert reading.label_logprobs.dtype == torch.float32 and reading.label_logprobs.device.type == "cpu"
    assert not reading.label_logprobs.requires_grad
    for i, reason in enumerate(reading.reasons):
        assert bool(torch.isnan(reading.label_logprobs[i]).all()) == (reason is not None)
    known = reading.label_mass[~torch.isnan(reading.label_mass)]
    assert ((known > 0) & (known <= 1 + 1e-5)).all()
    again = judge.read([Request(prompt, rows, need)])[0]
    torch.testing.assert_close(again.label_logprobs, reading.label_logprobs, rtol=0, atol=0, equal_nan=True)
