"""Stacks that cannot be installed here: their calls as their source makes them, against a real HTTP server.

Sources, read on 26 November 2026, with their commits: AReaL `areal/workflow/rlvr.py`, `areal/api/reward_api.py`
cbff54d; EasyR1 `verl/workers/reward/function.py` b44b311; SkyRL
`skyrl-gym/skyrl_gym/envs/{base_text_env,registration}.py`, `skyrl/train/generators/skyrl_gym_generator.py` a956457;
open-instruct `open_instruct/{ground_truth_utils,vllm_utils}.py` e6c3044; rLLM `rllm/eval/_resolution.py`,
`rllm/eval/reward_fns/_helpers.py`, `rllm/workflows/simple_workflow.py` 9beb6e0; oat
`oat/oracles/{base,countdown}.py`, `oat/actors/reward.py` c1a074c; LLaMA-Factory
`src/llamafactory/train/ppo/{ppo_utils,trainer}.py` ff6d4d1; slime `slime/rollout/rm_hub/__init__.py` 624b824; miles
`miles/rollout/rm_hub/__init__.py` 31f1ca9; NeMo-RL `nemo_rl/environments/utils.py`, `nemo_rl/data/processors.py`
7ea279a (see test_adapters.py, too).
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import httpx2 as httpx
import pytest
import torch
from contracts import FakeJudge
from servers import in_thread

from latent_rewards import JudgePrompt, VerifierReward
from latent_rewards.serving import adapters
from latent_rewards.serving.client import RewardClient
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ASKED, SAID, TRUE = "How many legs have two dogs?", "Eight.", "8"
BODY = (
    "kind: label\nsystem: You judge.\nbody: |\n  {{ prompt }} ({{ reference }})\n  {{ completion }}\n  Right?\n"
    "optional: [reference]\nlabels: {'yes': 1, 'no': 0}\nspellings: {'yes': ['Yes'], 'no': ['No']}\n"
)


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> JudgePrompt:
    path = tmp_path_factory.mktemp("prompts") / "with_reference.yaml"
    path.write_text(BODY)
    return JudgePrompt.load(path)


@pytest.fixture(scope="module")
def url(prompt: JudgePrompt) -> Iterator[str]:
    service = Service([FakeJudge()], lambda j: {"right": VerifierReward(j, prompt=prompt)}, ServeSettings(linger=0.0))
    with in_thread(service) as it:
        yield it


@pytest.fixture(autouse=True)
def configured(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LATENT_REWARDS_SERVER", url)
    adapters.client.cache_clear()
    yield
    adapters.client.cache_clear()


@pytest.fixture
def want(prompt: JudgePrompt) -> Any:
    score = VerifierReward(FakeJudge(), prompt=prompt).score([ASKED], [SAID], reference=[TRUE])[0]
    return pytest.approx(float(score), abs=1e-6)


def stub(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Modules of a stack that holds what an adapter imports; dots are written as __."""
    for name, content in modules.items():
        parts = name.split("__")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        module = types.ModuleType(".".join(parts))
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, ".".join(parts), module)


def adapter(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delitem(sys.modules, f"latent_rewards.serving.adapters.{name}", raising=False)
    return importlib.import_module(f"latent_rewards.serving.adapters.{name}")


def test_areal(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`partial(reward_fn, prompt_str, completions_str, input_tokens, output_tokens, **data)` in a process pool."""
    reward_fn = adapter("areal", monkeypatch).reward_fn
    data = {"messages": [{"role": "user", "content": ASKED}], "answer": TRUE, "query_id": "1"}
    assert functools.partial(reward_fn, CHAT.format(ASKED), SAID + "<|im_end|>", [1], [2], **data)() == want
    assert reward_fn(CHAT.format(ASKED), SAID, [1], [2], solution=TRUE) == want


def test_areal_hears_of_a_slow_judge_before_it_counts_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.wait_for(future, timeout=15)`, and after the fourth time `return 0`."""
    module = adapter("areal", monkeypatch)
    assert module.client(seconds=module.SECONDS).transport.deadline == module.SECONDS < 15
    monkeypatch.setenv("LATENT_REWARDS_DEADLINE", "590")
    adapters.client.cache_clear()
    assert module.client(seconds=module.SECONDS).transport.deadline == 590


def test_easyr1(want: Any) -> None:
    """Loaded as a file, its kind read from the module, called with a batch of dicts that hold no prompt."""
    path = Path(adapters.__file__).parent / "easyr1.py"
    spec: Any = importlib.util.spec_from_file_location("custom_reward_fn", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert getattr(module, "REWARD_TYPE", "batch") == "batch" and module.REWARD_NAME == "latent_rewards"
    truth = {"prompt": ASKED, "reference": TRUE}
    given = [{"response": SAID, "response_length": 2, "ground_truth": t} for t in (truth, json.dumps(truth))]
    assert functools.partial(module.compute_score)(given) == [{"overall": want}] * 2
    with pytest.raises(ValueError, match="row 1: EasyR1 passes no prompt"):
        module.compute_score([given[0], {**given[0], "ground_truth": TRUE}])


def test_skyrl(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`env = make(...)`, `env.init(prompt)`, then `env.step(action)` with what the policy said."""

    class BaseTextEnv:
        def __init__(self) -> None:
            self.turns, self.max_turns = 0, 1

    class BaseTextEnvStepOutput(TypedDict):
        observations: list[dict[str, str]]
        reward: float
        done: bool
        metadata: dict[str, Any]

    stub(monkeypatch, skyrl_gym__envs__base_text_env={
        "BaseTextEnv": BaseTextEnv, "BaseTextEnvStepOutput": BaseTextEnvStepOutput,
    })  # fmt: skip
    module = adapter("skyrl", monkeypatch)
    env = module.LatentRewardsEnv(env_config={}, extras={"reward_spec": {"method": "rule", "ground_truth": TRUE}})
    chat = [{"role": "user", "content": ASKED}]
    assert env.init(chat) == (chat, {})
    out = env.step(SAID + "<|im_end|>")
    assert out["reward"] == want and out["done"] is True and out["observations"] == []


def test_open_instruct(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`subclass(verifier_config)`, `async_call` by keyword, and from there `__call__` by position, five of them."""

    @dataclass
    class VerificationResult:
        score: float
        cost: float = 0.0
        reasoning: str | None = None

    class VerifierFunction:
        def __init__(self, name: str, weight: float = 1.0, verifier_config: Any = None) -> None:
            self.name, self.weight, self.verifier_config = name, weight, verifier_config

        async def async_call(
            self, tokenized_prediction: list[int], prediction: str, label: Any, query: str | None = None,
            rollout_state: dict[str, Any] | None = None,
        ) -> VerificationResult:  # fmt: skip
            call: Any = self
            return await asyncio.to_thread(call, tokenized_prediction, prediction, label, query, rollout_state)

    stub(monkeypatch, open_instruct__ground_truth_utils={
        "VerificationResult": VerificationResult, "VerifierFunction": VerifierFunction,
    })  # fmt: skip
    module = adapter("open_instruct", monkeypatch)
    assert VerifierFunction.__subclasses__() == [module.LatentRewardsVerifier]
    verifier = module.LatentRewardsVerifier(None)
    for query in (f"user: {ASKED}", CHAT.format(ASKED), ASKED):  # "role: content" is how the trainer writes it
        call = verifier.async_call(
            tokenized_prediction=[1], prediction=SAID, label=TRUE, query=query, rollout_state={"done": True}
        )
        assert asyncio.run(call).score == want
    assert verifier.name == "latent_rewards"
    assert module._asked("system: s\nuser: a\nb\nassistant: c\nuser: d") == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="gave no query"):
        verifier([1], SAID, TRUE)


def test_rllm(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`reward_function(task, action)` with an `Action`; `evaluator.evaluate(task, episode)` with a `Task` or a row."""

    @dataclass
    class RewardOutput:
        reward: float
        metadata: dict[str, Any] = field(default_factory=dict)

    class Action(NamedTuple):
        action: str

    @dataclass
    class EvalOutput:
        reward: float
        is_correct: bool
        signals: list[Any] = field(default_factory=list)
        metadata: dict[str, Any] = field(default_factory=dict)

    def extract_answer_text(episode: Any) -> str:
        return str(episode.artifacts["answer"])

    def adapted(evaluator: Any) -> Any:
        """`_adapt_legacy_evaluator`: an evaluator of dicts gets the metadata alone."""
        first = next(iter(inspect.signature(evaluator.evaluate).parameters.values()))
        dicts = first.annotation is dict or str(first.annotation).startswith("dict")
        if not dicts and first.name not in ("task_data", "task_info"):
            return evaluator.evaluate
        return lambda task, episode: evaluator.evaluate(task.metadata, episode)

    stub(monkeypatch, rllm__rewards__reward_types={"RewardOutput": RewardOutput})
    stub(
        monkeypatch,
        rllm__eval__reward_fns___helpers={"extract_answer_text": extract_answer_text},
        rllm__eval__types={"EvalOutput": EvalOutput},
    )
    module = adapter("rllm", monkeypatch)
    function = module.latent_reward_fn
    task = {"question": ASKED, "ground_truth": TRUE, "data_source": "d"}
    assert function(task, SAID).reward == function(task, Action(SAID)).reward == want
    chat = {"messages": [{"role": "user", "content": ASKED}], "ground_truth": TRUE}
    assert function(chat, SAID).reward == want
    episode = types.SimpleNamespace(artifacts={"answer": SAID + "<|im_end|>"})
    row = types.SimpleNamespace(instruction="", metadata=task)
    own = types.SimpleNamespace(instruction=ASKED, metadata={"ground_truth": TRUE})
    blocks = types.SimpleNamespace(instruction=[{"type": "text", "text": ASKED}], metadata={"ground_truth": TRUE})
    by_row = {"instruction": ASKED, "ground_truth": TRUE}
    evaluate = adapted(module.latent_evaluator)
    found = [evaluate(t, episode) for t in (row, own, blocks)]
    found += [module.latent_evaluator.evaluate(t, episode) for t in (task, by_row)]
    assert [f.reward for f in found] == [want] * 5 and all(isinstance(f, EvalOutput) for f in found)
    assert all(f.is_correct == (f.reward > 0) for f in found)
    with pytest.raises(ValueError, match="without what was asked"):
        function({"ground_truth": TRUE}, SAID)


def test_oat(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get_reward(inputs, responses, references)`, and `compare(...)` with references in place of B to evaluate."""
    stub(monkeypatch, oat__oracles__base={"RewardOracleBase": object})
    oracle = adapter("oat", monkeypatch).LatentRewardsOracle()
    rewards, metrics = oracle.get_reward([CHAT.format(ASKED)] * 2, [SAID, "Six."], [TRUE, TRUE], batch_size=2)
    assert isinstance(rewards, torch.Tensor) and rewards.shape == (2,) and metrics == {}
    assert float(rewards[0]) == want and float(rewards[1]) != want
    as_it_evaluates = {"batch_size": 1, "return_probs": True, "disable_tqdm": True}
    wins, _ = oracle.compare([ASKED] * 2, [SAID, "Six."], [TRUE] * 2, **as_it_evaluates)
    assert wins.reshape(1, 2).transpose(1, 0).tolist() == [[want], [float(rewards[1])]]


def test_llama_factory(url: str, prompt: JudgePrompt) -> None:
    """`requests.post(url, json={"model": "model", "messages": texts})`, and "scores" of the answer."""
    texts = [CHAT.format(ASKED) + SAID + "<|im_end|>\n", CHAT.format(ASKED) + "Six.<|im_end|>"]
    answer = httpx.post(url + "/llama_factory", json={"model": "model", "messages": texts})
    reward = VerifierReward(FakeJudge(), prompt=prompt)
    assert json.loads(answer.text)["scores"] == pytest.approx(list(reward.score([ASKED] * 2, [SAID, "Six."])), abs=1e-6)
    refused = httpx.post(url + "/llama_factory", json={"model": "model", "messages": [texts[0], "no dialogue"]})
    assert refused.status_code == 422 and refused.json()["error"]["row"] == 1


def test_slime_and_miles(url: str, want: Any) -> None:
    """`session.post(rm_url, json={"prompt", "response", "label"})`; the prompt is text or messages."""
    for asked in (ASKED, [{"role": "user", "content": ASKED}], CHAT.format(ASKED)):
        sent = {"prompt": asked, "response": SAID + "<|im_end|>", "label": TRUE}
        assert httpx.post(url + "/remote_rm", json=sent).json() == want


def test_slime_and_miles_by_function(want: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_function(path)`, then `await rm_function(args, sample)`, or with a list of samples for a batch or group."""
    module_path, _, attr = "latent_rewards.serving.adapters.slime.reward_func".rpartition(".")
    rm_function = getattr(importlib.import_module(module_path), attr)
    one = types.SimpleNamespace(prompt=CHAT.format(ASKED), response=SAID + "<|im_end|>", label=TRUE, metadata={})
    by_metadata = types.SimpleNamespace(prompt=ASKED, response=SAID, label=None, metadata={"reference": TRUE})
    assert asyncio.run(rm_function(None, one)) == want
    assert asyncio.run(rm_function(None, [one, by_metadata])) == [want, want]


def test_tinker(want: Any) -> None:
    """`await env.step(action)` in a running loop: the client of docs/stacks.md, asked without blocking it."""
    client = RewardClient(reward="right")

    async def step() -> float:
        (score,) = await client.score_async([{"prompt": ASKED, "completion": SAID, "reference": TRUE}])
        return score

    async def group() -> list[float]:
        return list(await asyncio.gather(*[step() for _ in range(4)]))

    assert asyncio.run(group()) == [want] * 4
