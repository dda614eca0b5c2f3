"""Other RL stacks: each adapter called exactly as the stack's source calls it, against a real HTTP server.

verifiers is tested against the package where it is installed; verl, OpenRLHF, ms-swift and NeMo-RL need accelerators or
other pins, so their calls are transcribed from the files named in each adapter.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
import types
from abc import ABC
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx
import numpy as np
import pytest
import torch
from contracts import UNREADABLE, FakeJudge
from servers import in_thread

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from latent_rewards import VerifierReward, build_reward
from latent_rewards.serving import JudgeServerError, adapters
from latent_rewards.serving.service import Service
from latent_rewards.serving.settings import ServeSettings

CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n".format
PROMPT, ANSWER = "Name a prime.", "Seven."
REWARDS = ("weighted", "verifier", "odds")


def named(name: str, judge: Any) -> Any:
    return VerifierReward(judge, output="log_odds") if name == "odds" else build_reward(name, judge)


@pytest.fixture(scope="module")
def url() -> Any:
    judge: Any = FakeJudge()
    judge.blocks = types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=8))  # for /info
    service = Service([judge], lambda j: {n: named(n, j) for n in REWARDS}, ServeSettings(linger=0.0))
    with in_thread(service) as it:
        yield it


@pytest.fixture(autouse=True)
def configured(url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LATENT_REWARDS_SERVER", url)
    adapters.client.cache_clear()
    yield
    adapters.client.cache_clear()


def want(prompt: Any = PROMPT, answer: str = ANSWER, reward: str = "weighted") -> Any:
    return pytest.approx(float(named(reward, FakeJudge()).score([prompt], [answer])[0]), rel=1e-6)


def test_verl() -> None:
    """`NaiveRewardManager._compute_score_for_response`, with `reward_kwargs` bound as `get_custom_reward_fn` does."""
    module = importlib.import_module("latent_rewards.serving.adapters.verl")
    assert inspect.iscoroutinefunction(module.compute_score)

    async def call(fn: Any, **extra: Any) -> Any:
        info = {"num_turns": 1, "rollout_reward_scores": {}, "prompt": PROMPT} | extra
        return await fn(data_source="d", solution_str=ANSWER, ground_truth="7", extra_info=info)

    assert asyncio.run(call(module.compute_score)) == {"score": want()}
    chosen = functools.partial(module.compute_score, reward="verifier")
    assert asyncio.run(call(chosen)) == {"score": want(reward="verifier")}
    routed = functools.partial(module.compute_score, reward_router_address="x:1", reward_model_tokenizer=None)
    assert set(asyncio.run(call(routed))) == {"score"}
    with pytest.raises(ValueError, match="extra_info has no 'question'"):
        asyncio.run(call(functools.partial(module.compute_score, prompt_key="question")))


def test_verl_prompt_of_the_agent_loop() -> None:
    """`extra_info.update(tool_extra_fields.items())`, which hold `raw_prompt`, as `naive` and `remote` do it."""
    module = importlib.import_module("latent_rewards.serving.adapters.verl")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    info: dict[str, Any] = {}
    info.update({"turn_scores": [], "raw_prompt": np.array([*talk, None], dtype=object)[:2]}.items())
    asked = {"data_source": "d", "solution_str": ANSWER, "ground_truth": "7"}
    assert asyncio.run(module.compute_score(**asked, extra_info=info)) == {"score": want(talk)}
    assert asyncio.run(module.compute_score(**asked, extra_info=info | {"prompt": PROMPT})) == {"score": want()}


def test_verl_in_processes_of_its_own() -> None:
    """`RemoteRewardManager` asserts that the function is not async, and calls it in a Ray actor."""
    function = importlib.import_module("latent_rewards.serving.adapters.verl").compute_score_sync
    assert not inspect.iscoroutinefunction(function)
    asked = {"data_source": "d", "solution_str": ANSWER, "ground_truth": "7"}
    chosen = functools.partial(function, reward="verifier")
    assert chosen(**asked, extra_info={"raw_prompt": PROMPT}) == {"score": want(reward="verifier")}


def openrlhf_info(answer: str = ANSWER) -> Any:
    """`SingleTurnAgentExecutor`: loads the file, calls it with one sample in a thread, reads the dict."""
    path = Path(adapters.__file__).parent / "openrlhf.py"
    spec: Any = importlib.util.spec_from_file_location("reward_func", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    query, prompt = CHATML(PROMPT) + answer + "<|im_end|>", CHATML(PROMPT)

    async def fetch() -> Any:
        return await asyncio.gather(asyncio.to_thread(module.reward_func, [query], [prompt], ["7"]))

    (info,) = asyncio.run(fetch())
    return info


def test_openrlhf_file(url: str) -> None:
    info = openrlhf_info()
    assert isinstance(info["rewards"], torch.Tensor) and info["rewards"].shape == (1,)
    assert float(info["rewards"][0]) == want()
    payload = {"query": [CHATML(PROMPT) + ANSWER], "prompts": [CHATML(PROMPT)], "labels": ["7"]}
    by_route = httpx.post(url + "/get_reward", json=payload).json()["scores"]
    assert info["scores"].tolist() == pytest.approx(by_route, rel=1e-6) and by_route != pytest.approx([want()])


def test_openrlhf_file_gives_no_scores_for_a_reward_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_REWARDS_REWARD", "odds")
    info = openrlhf_info()
    assert "scores" not in info and float(info["rewards"][0]) == want(reward="odds")


def test_openrlhf_url_and_slime(url: str) -> None:
    """`_fetch_rewards_via_http` and slime's `remote_rm`."""
    payload = {"query": [CHATML(PROMPT) + ANSWER + "<|im_end|>"], "prompts": [CHATML(PROMPT)], "labels": ["7"]}
    info = httpx.post(url + "/get_reward", json=payload).json()
    assert info["rewards"] == [want()] and 0 <= info["scores"][0] <= 1 and info["extra_logs"]["label_mass"]
    slime = {"prompt": PROMPT, "response": ANSWER, "label": "7"}
    assert httpx.post(url + "/remote_rm", json=slime).json() == want()


def swift_rewards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`swift.rewards` with what the adapter imports of it, and the adapter imported into it."""
    rewards: Any = types.ModuleType("swift.rewards")

    class AsyncORM:
        def __init__(self, args: Any = None, **kwargs: Any) -> None:
            self.args = args

    class DefaultRMPlugin:
        def __init__(self, model: Any, template: Any) -> None:
            self.model, self.template = model, template

    rewards.AsyncORM, rewards.orms = AsyncORM, {}
    rewards.rm_plugins = {"default": DefaultRMPlugin}
    monkeypatch.setitem(sys.modules, "swift", types.ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    monkeypatch.delitem(sys.modules, "latent_rewards.serving.adapters.ms_swift", raising=False)
    importlib.import_module("latent_rewards.serving.adapters.ms_swift")
    return rewards


def test_ms_swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """`orms[name](args=...)`, then `await func(completions, **reward_kwargs)` with messages that end in the answer."""
    func = swift_rewards(monkeypatch).orms["latent_rewards"](args=object())
    assert inspect.iscoroutinefunction(type(func).__call__)
    messages = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in (("a", "b"), ("c", "d"))
    ]
    columns = {"trainer_state": object(), "solution": ["x", "y"], "completion_ids": [[1], [2]]}
    got = asyncio.run(func(["b", "d"], messages=messages, **columns))
    assert got == [want("a", "b"), want("c", "d")] and all(type(x) is float for x in got)


def test_ms_swift_rows_of_several_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """`RowPreprocessor.rows_to_batched` fills the columns that a row lacks with None."""
    func = swift_rewards(monkeypatch).orms["latent_rewards"](args=object())
    asked: list[dict[str, Any]] = []

    async def score_async(rows: list[dict[str, Any]]) -> list[float]:
        asked.extend(rows)
        return [0.0] * len(rows)

    module = sys.modules["latent_rewards.serving.adapters.ms_swift"]
    monkeypatch.setattr(module, "client", lambda: types.SimpleNamespace(score_async=score_async))
    talk = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
    columns = {"solution": ["4", None, None], "ground_truth": [None, "8", None], "answer": [None, None, "9"]}
    asyncio.run(func([ANSWER] * 3, messages=[talk] * 3, trainer_state=None, **columns))
    assert [row["reference"] for row in asked] == ["4", "8", "9"]


def test_ms_swift_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rm_plugins[rm_plugin](model=rm, template=rm_template)`: scored with the folder's own chat template."""
    rewards = swift_rewards(monkeypatch)
    model, template = object(), types.SimpleNamespace(template_backend="swift")
    plugin = rewards.rm_plugins["latent_rewards"](model=model, template=template)
    assert isinstance(plugin, rewards.rm_plugins["default"]) and plugin.model is model and plugin.template is template
    assert template.template_backend == "jinja"


def test_nemo_rl(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """`actor_class.options(...).remote(config)`, then `step(message_log_batch, metadata)`."""

    class EnvironmentReturn(NamedTuple):
        observations: list[dict[str, str]]
        metadata: list[Any]
        next_stop_strings: list[Any]
        rewards: torch.Tensor
        terminateds: torch.Tensor
        answers: list[str | None] | None = None

    def remote(cls: Any) -> Any:
        actor = types.SimpleNamespace(remote=cls)
        actor.options = lambda **_: actor
        return actor

    interfaces = types.ModuleType("nemo_rl.environments.interfaces")
    interfaces.EnvironmentReturn, interfaces.EnvironmentInterface = EnvironmentReturn, ABC  # type: ignore[attr-defined]
    for name in ("nemo_rl", "nemo_rl.environments"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "nemo_rl.environments.interfaces", interfaces)
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(remote=remote))  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "latent_rewards.serving.adapters.nemo_rl", raising=False)
    module = importlib.import_module("latent_rewards.serving.adapters.nemo_rl")
    env = module.LatentRewardsEnvironment.options(runtime_env={}).remote({"server": url, "reward": "verifier"})
    logs = [
        [{"role": "user", "content": p, "token_ids": torch.ones(2)}, {"role": "assistant", "content": a}]
        for p, a in (("a", "b"), ("c", "d"))
    ]
    out = env.step(logs, [{}, None])
    assert out.rewards.shape == (2,) and out.rewards.tolist() == [
        want("a", "b", "verifier"),
        want("c", "d", "verifier"),
    ]
    assert out.terminateds.dtype == torch.bool and bool(out.terminateds.all()) and out.answers == ["b", "d"]
    rendered = [
        [{"role": "user", "content": CHATML("a")}, {"role": "assistant", "content": "b<|im_end|>"}],
        [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": CHATML("c")},
            {"role": "assistant", "content": "d"},
        ],
    ]  # fmt: skip
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c"}]
    out = env.step(rendered, [{"ground_truth": "x"}, {}])  # as `math_data_processor` makes them, with a system prompt
    assert out.rewards.tolist() == [want("a", "b", "verifier"), want(brief, "d", "verifier")]
    batch, metrics = env.global_post_process_and_metrics({"total_reward": out.rewards})
    assert metrics == {"latent_rewards/mean": pytest.approx(float(out.rewards.mean()))} and "total_reward" in batch


def test_verifiers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    """The real package: resolved as a plugin from a config, run on a task and a trace."""
    pytest.importorskip("verifiers.v1")
    from verifiers.v1.configs.judge import check_judges, resolve_judges
    from verifiers.v1.utils.loaders import load_judge

    adapter = "latent_rewards.serving.adapters.verifiers"
    (tmp_path / "latent_judge.py").write_text(f"from {adapter} import *\nfrom {adapter} import __all__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (config,) = resolve_judges([{"id": "latent_judge", "server": url, "reward": "verifier", "name": "quality"}])
    check_judges([config])
    judge: Any = load_judge(config)
    assert judge.reward_name == "quality"
    task = types.SimpleNamespace(prompt_text=PROMPT, withheld_prompt_text="")
    trace = types.SimpleNamespace(last_reply=ANSWER)
    assert asyncio.run(judge.score(task, trace)) == want(reward="verifier")


def test_the_option_of_verifiers_that_the_pages_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real package: its `eval` takes no option that it does not know."""
    config = pytest.importorskip("verifiers.v1.configs.cli.eval")
    adapter = "latent_rewards.serving.adapters.verifiers"
    (tmp_path / "latent_judge.py").write_text(f"from {adapter} import *\nfrom {adapter} import __all__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for text in (Path(adapters.__file__).parent / "verifiers.py", Path(__file__).parents[2] / "docs" / "stacks.md"):
        found: Any = re.search(r"--(env[\w.]+judges) '(\[.*?\])'", text.read_text(encoding="utf-8"))
        value: Any = json.loads(found[2])
        for key in reversed(found[1].split(".")):
            value = {key: value}
        value["env"]["taskset"] |= {"id": "openenv", "base_url": "http://env"}
        (judge,) = config.EvalConfig.model_validate(value).env.taskset.task.judges
        assert judge.server == "http://judge:8077"


def test_a_score_that_cannot_be_read_is_an_error_in_every_stack(url: str) -> None:
    module = importlib.import_module("latent_rewards.serving.adapters.verl")
    with pytest.raises(JudgeServerError, match="row 0 has no score: UNREADABLE"):
        asyncio.run(module.compute_score("d", UNREADABLE, None, {"prompt": PROMPT}))
    refused = httpx.post(url + "/remote_rm", json={"prompt": PROMPT, "response": UNREADABLE})
    assert refused.status_code == 422 and refused.json()["error"]["message"] == "row 0: UNREADABLE"
