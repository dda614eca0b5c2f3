from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts import trl_kwargs

import latent_rewards.env as env
from latent_rewards import LikertReward, ProbabilityWeightedReward, VerifierReward
from latent_rewards.rewards.build import REWARDS


def test_every_reward_by_environment(clean_env: Any, folder: str) -> None:
    clean_env.setenv("LATENT_REWARDS_JUDGE", folder)
    clean_env.setenv("LATENT_REWARDS_DTYPE", "float32")
    clean_env.setenv("LATENT_REWARDS_DEVICE", "cpu")
    rewards = {name: getattr(env, name) for name in REWARDS if name not in ("probe", "panel")}
    assert len(rewards) >= 5
    with pytest.raises((ValueError, FileNotFoundError), match="probe"):
        env.probe  # noqa: B018  # the shipped probe belongs to another judge
    with pytest.raises(ValueError, match=r"a panel needs path=\.\.\., a folder that"):
        env.panel  # noqa: B018
    assert len({id(r.judge) for r in rewards.values()}) == 1, "one judge for all"
    assert env.weighted is rewards["weighted"]
    assert isinstance(env.weighted, ProbabilityWeightedReward) and isinstance(env.likert5, LikertReward)
    out = env.weighted(prompts=["p"], completions=["c"], **trl_kwargs(1))
    assert isinstance(out[0], float) and env.verifier.judge.model_name == folder


def test_default_is_the_embedded_judge(clean_env: Any) -> None:
    assert env._judge().model_name == "embedded"


def test_prompt_by_environment(clean_env: Any, folder: str) -> None:
    clean_env.setenv("LATENT_REWARDS_JUDGE", folder)
    clean_env.setenv("LATENT_REWARDS_PROMPT", "four_rubric")
    assert env.weighted.prompt.name == "four_rubric" and env.likert10.prompt.name == "likert10"


def test_a_prompt_by_environment_reaches_every_reward_or_is_refused(clean_env: Any, folder: str) -> None:
    clean_env.setenv("LATENT_REWARDS_JUDGE", folder)
    clean_env.setenv("LATENT_REWARDS_PROMPT", "four_rubric")
    made = {name: getattr(env, name) for name in REWARDS if name not in ("verifier", "ensemble", "probe", "panel")}
    assert made.pop("rubric_list").prompt.name == "criterion", "it reads its own"
    assert made.pop("pairwise").prompt.name == "pairwise", "and so does what compares"
    assert made.pop("likelihood").prompt.name == "likelihood_completion", "and so does what has no labels"
    assert len(made) == 7
    assert {r.prompt.name for n, r in made.items() if not n.startswith("likert")} == {"four_rubric"}
    for name in ("verifier", "ensemble"):  # the ensemble holds a verifier
        with pytest.raises(ValueError, match=r"LATENT_REWARDS_\* .*labels with values 0 and 1; prompt 'four_rubric'"):
            getattr(env, name)
    with pytest.raises(ValueError, match="the probe was trained on"):
        env.probe  # noqa: B018  # its own prompt, another judge


def configure(clean_env: Any, tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rewards.yaml"
    path.write_text(text)
    clean_env.setenv("LATENT_REWARDS_CONFIG", str(path))
    return path


def test_yaml(clean_env: Any, tmp_path: Path, folder: str) -> None:
    judge = f"judge: {{model: {folder}, max_length: 500}}\n"
    rewards = "rewards:\n  weighted: {scale: 0.1}\n  verifier: {output: log_odds}\n"
    configure(clean_env, tmp_path, judge + rewards)
    assert env.weighted.scale == 0.1 and env.weighted.judge.max_length == 500
    assert isinstance(env.verifier, VerifierReward) and env.verifier.output == "log_odds"
    assert env.cross_layer.scale == 1.0, "a reward that the file does not name has its defaults"


def test_yaml_with_the_judge_as_a_name(clean_env: Any, tmp_path: Path, folder: str) -> None:
    configure(clean_env, tmp_path, f"judge: {folder}\n")
    assert env.weighted.judge.model_name == folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected the keys"),
        ("", "expected the keys"),
        ("jugde: x", "expected the keys"),
        ("rewards: {best: {}}", "unknown reward 'best'"),
        ("rewards: [weighted]", "mapping"),
        ("rewards: {weighted: 0.1}", "mapping"),
        ("judge: [embedded]", "mapping"),
        ("judge: {modle: embedded}", "modle"),
        ("rewards: {weighted: {colour: red}}", "colour"),
        ("judge: {unclosed", ""),
    ],
)
def test_bad_configs_name_the_file(clean_env: Any, tmp_path: Path, text: str, message: str) -> None:
    path = configure(clean_env, tmp_path, text)
    with pytest.raises(ValueError) as caught:
        _ = env.weighted
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_unknown_names(clean_env: Any) -> None:
    with pytest.raises(AttributeError, match="no reward 'best'"):
        _ = env.best
    clean_env.setenv("LATENT_REWARDS_CONFIG", "/nowhere/at-all.yaml")
    with pytest.raises(FileNotFoundError):
        _ = env.weighted
