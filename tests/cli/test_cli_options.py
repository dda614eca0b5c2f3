"""One manner of options and errors for every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from latent_rewards import HFJudge, JudgePrompt, env
from latent_rewards.best_of_n import run as best_of_n_run
from latent_rewards.cli import options, serve
from latent_rewards.cli.main import app
from latent_rewards.evaluation import run as evaluate_run
from latent_rewards.rewards.build import NAMES, build_reward, parse_reward, wanted
from latent_rewards.rewards.calibrated import Calibration
from latent_rewards.rewards.layer_weights import LayerWeights

REWARDED = {("score",), ("evaluate",), ("best-of-n",), ("serve",)}
JUDGED = REWARDED | {
    ("probe", "train"),
    ("panel", "train"),
    ("export", "probe"),
    ("export", "verifier"),
    ("export", "labels"),
}


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {path: command}
    return {k: v for name, c in command.commands.items() for k, v in leaves(c, (*path, name)).items()}


COMMANDS = leaves(get_command(app))


def flags(*path: str) -> set[str]:
    return {o for p in COMMANDS[path].params for o in p.opts}


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_every_command_says_the_same_in_the_same_way(path: tuple[str, ...]) -> None:
    found = flags(*path)
    judged, rewarded = path in JUDGED, path in REWARDED
    assert ({"--judge", "--judge-option", "--device", "--dtype", "--revision"} <= found) == judged
    assert ({"--reward", "--reward-option", "--prompt"} <= found) == rewarded
    assert ("--output" in found) == (judged and path != ("serve",))
    assert not found & {"--rewards", "--judge-prompt", "--out"}


def test_the_names_in_the_help_are_those_of_the_rewards() -> None:
    assert set(options.NAMES) == set(NAMES)


def test_the_help_needs_no_torch() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'numpy', 'datasets') if m in sys.modules]"
    run = "from latent_rewards.cli import app\napp(['score', '--help'], standalone_mode=False)"
    program = f"import sys\n{run}\nprint({heavy})"
    environment = {**os.environ, "PYTHONPATH": str(Path(env.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert "--judge-option" in done.stdout and done.stdout.splitlines()[-1] == "[]"


# --- errors


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["scor"], "best-of-n"),
        (["score", "--colour", "x"], "--score-column"),
        (["probe", "shwo"], "push"),
        (["score", "--input", "a.jsonl"], "--output"),
        (["score", "--reward", "best", "--describe"], "cross_layer"),
        (["score", "--judge-option", "colour=red", "--describe"], "quantization"),
        (["score", "--dtype", "float16", "--judge-option", "dtype=float32", "--describe"], "one of the two"),
        (["evaluate", "--reward", "best"], "cross_layer"),
        (["evaluate", "--benchmarks", "nope"], "open_ended"),
        (["best-of-n", "--input", "a.jsonl"], "--output"),
        (["best-of-n", "--input", "a.jsonl", "--output", "o", "--reward", "best"], "aspects"),
        (["serve", "--reward", "best"], "cross_layer"),
        (["serve", "--judge-option", "dtype"], "key=value"),
        (["probe", "show", "nowhere"], "embedded"),
        (["probe", "train", "none.jsonl", "--output", "p"], "none.jsonl"),
        (["export", "probe", "embedded"], "--output"),
        (["export", "verifier", "--output", "o", "--judge", "nowhere"], "nowhere"),
    ],
)
def test_an_error_is_one_message_and_2(
    arguments: list[str], allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit) and "Traceback" not in done.output
    (line,) = [x for x in done.output.splitlines() if x.startswith("error: ")]
    assert allowed in done.output[done.output.index(line) :]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--debug", "probe", "show", "x"], ["probe", "show", "x", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2 and "Traceback" in done.output and "error: no probe in x" in done.output
    assert "Traceback" not in invoke("probe", "show", "x").output


# --- old spellings


def test_old_spellings_go_on_with_a_hint(tmp_path: Path) -> None:
    done = invoke("serve", "--rewards", "weighted,best", "--judge", "nowhere")
    assert "hint: --rewards is now --reward" in done.output and "unknown reward 'best'" in done.output
    done = invoke("probe", "train", "none.jsonl", f"--out={tmp_path / 'x'}")
    assert "hint: --out is now --output" in done.output and "none.jsonl" in done.output
    done = invoke("export", "labels", tmp_path / "x", "--judge", "nowhere")
    assert "hint: the folder to write is now --output" in done.output and "judge 'nowhere'" in done.output
    done = invoke("score", "--judge-prompt", "none.yaml", "--describe")
    assert "hint: --judge-prompt is now --prompt" in done.output and "none.yaml" in done.output
    assert "hint" not in invoke("score", "--prompt", "none.yaml", "--describe").output


# --- rewards by name


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("weighted", "weighted", {}), ("weighted:rubric", "weighted", {"prompt": "rubric"}),
        ("probe:runs/p", "probe", {"path": "runs/p"}), ("likert10:bare", "likert10", {"feedback": False}),
        ("likert5:guided", "likert5", {"guided": True}), ("likert5:mine.yaml", "likert5", {"prompt": "mine.yaml"}),
        ("guarded:verifier", "guarded", {"of": "verifier"}), ("ensemble:a+b", "ensemble", {"of": ["a", "b"]}),
    ],
)  # fmt: skip
def test_short_names(text: str, name: str, arguments: dict[str, Any]) -> None:
    assert parse_reward(text) == (name, arguments)


def test_a_yaml_file_of_rewards(tmp_path: Path) -> None:
    rewards = {"strict": {"reward": "weighted:rubric", "scale": 2}, "verifier": None}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"rewards": rewards}))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(["cross_layer", {"reward": "probe", "path": "p"}]))
    got = wanted([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "likert5"])
    assert [(w.own, *w.parsed()) for w in got] == [
        ("strict", "weighted", {"scale": 2, "prompt": "rubric"}), ("verifier", "verifier", {}),
        ("cross_layer", "cross_layer", {}), ("probe", "probe", {"path": "p"}), ("likert5", "likert5", {}),
    ]  # fmt: skip
    (tmp_path / "c.yaml").write_text("rewards: {best: {}}")
    with pytest.raises(ValueError, match=r"c\.yaml: unknown reward 'best'; known are"):
        wanted([str(tmp_path / "c.yaml")])


def test_own_names_in_the_file_of_the_environment(clean_env: Any, tmp_path: Path, folder: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(f"judge: {folder}\nrewards: {{strict: {{reward: 'weighted:four_rubric', scale: 3}}}}\n")
    clean_env.setenv("LATENT_REWARDS_CONFIG", str(path))
    assert env.strict.scale == 3 and env.strict.prompt.name == "four_rubric"
    with pytest.raises(AttributeError, match="strict"):
        _ = env.lenient


def test_what_is_laid_around_a_reward_can_be_built_from_yaml(tmp_path: Path, folder: str) -> None:
    judge = HFJudge(folder, dtype="float32", device="cpu")
    Calibration.fit([1.0, 2.0, 3.0], [0.0, 5.0, 10.0]).save(tmp_path / "c")
    prompt = JudgePrompt.load("weighted").hash
    layers = LayerWeights(torch.eye(judge.n_layers + 1)[-1], judge.name, judge.revision, prompt, "normed")
    layers.save(tmp_path / "w")
    (tmp_path / "r.yaml").write_text(
        f"mine: {{reward: calibrated, of: weighted, calibration: {tmp_path / 'c'}}}\n"
        f"tuned: {{reward: cross_layer, weights: {tmp_path / 'w'}}}\nreasoned: {{max_new_tokens: 2}}\n"
    )
    made = {w.own: build_reward(w.parsed()[0], judge, **w.parsed()[1]) for w in wanted([str(tmp_path / "r.yaml")])}
    plain = build_reward("weighted", judge).score(["p"], ["c"])
    np.testing.assert_allclose(made["mine"].score(["p"], ["c"]), 5 * (plain - 1), rtol=1e-5)
    assert made["tuned"].weights[-1] == 1.0 and made["reasoned"].max_new_tokens == 2


# --- a file of settings and flags over it


def settings_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, *arguments: Any) -> Any:
    """What the command would run, without running it."""
    seen: list[Any] = []

    def stop(config: Any, *_: Any) -> None:
        seen.append(config)
        raise ValueError("enough")

    monkeypatch.setattr(module, name, stop)
    done = invoke(*arguments)
    assert done.exit_code == 2 and "error: enough" in done.output, done.output
    return seen[0]


def test_flags_over_the_file_of_evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        "judge: a/b\njudge_kwargs: {dtype: float32, max_length: 9}\nrewards: [verifier]\nlimit: 3\nsamples: 4\n"
        "keep_layers: [1]\n"
    )
    given = ("evaluate", "--config", file, "--limit", 7, "--dtype", "bfloat16")
    got = settings_of(monkeypatch, evaluate_run, "evaluate", *given)
    assert got.judge == {"model": "a/b", "dtype": "bfloat16", "max_length": 9}
    assert (got.limit, got.samples, got.rewards, got.keep_layers) == (7, 4, ["verifier"], [1])
    got = settings_of(
        monkeypatch, evaluate_run, "evaluate", *given, "--reward", "weighted", "--reward-option", "scale=2"
    )
    assert got.rewards == {"weighted": {"reward": "weighted", "scale": 2}}
    plain = settings_of(monkeypatch, evaluate_run, "evaluate", "evaluate")
    assert plain.judge == {"model": "embedded"} and plain.rewards[:2] == ["weighted", "verifier"]


def test_flags_over_the_file_of_best_of_n(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from latent_rewards import best_of_n as package

    file = tmp_path / "b.yaml"
    file.write_text(
        "input: in.jsonl\noutput: out\njudge: {model: a/b}\nrewards: [[weighted, {scale: 2}]]\n"
        "selection: {method: top-k, k: 3, seed: 5}\ngenerator: {model: p, backend: server, url: 'http://x'}\n"
        "sampling: {n: 4, top_k: 2}\n"
    )
    assert package.best_of_n is best_of_n_run.best_of_n
    given = ("best-of-n", "--config", file, "--k", 2, "--max-new-tokens", 9, "--device", "cpu")
    got = settings_of(monkeypatch, package, "best_of_n", *given)
    assert (got.input, got.output, got.rewards) == ("in.jsonl", "out", [("weighted", {"scale": 2})])
    assert (got.selection.method, got.selection.k, got.selection.seed) == ("top-k", 2, 5)
    assert got.judge == {"model": "a/b", "device": "cpu"}
    assert got.generator == {"model": "p", "backend": "server", "url": "http://x"}
    assert (got.sampling["n"], got.sampling["top_k"], got.sampling["max_new_tokens"]) == (4, 2, 9)
    file.write_text("colour: red\n")
    assert "known are ['batch_size'" in invoke("best-of-n", "--config", file).output


def test_flags_over_the_file_of_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("judge: {model: a/b, max_length: 9}\nrewards: {mine: {reward: verifier, output: log_odds}}\n")
    seen: list[Any] = []
    real = serve._wanted

    def stop(ctx: Any) -> None:
        seen.append(real(ctx))
        raise ValueError("enough")

    monkeypatch.setattr(serve, "_wanted", stop)
    given = ("serve", "--config", file, "--dtype", "float32", "--reward-option", "scale=2")
    assert "error: enough" in invoke(*given).output
    assert "error: enough" in invoke(*given, "--reward", "weighted:rubric").output
    judge = {"model": "a/b", "max_length": 9, "dtype": "float32"}
    assert seen == [
        (judge, {"mine": ("verifier", {"output": "log_odds", "scale": 2})}),
        (judge, {"weighted-rubric": ("weighted", {"scale": 2, "prompt": "rubric"})}),
    ]


def test_overwrite_begins_a_run_anew(tmp_path: Path, folder: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": "p", "completion": "c" * i}) + "\n" for i in range(1, 5)))
    common = ("best-of-n", "--input", source, "--output", tmp_path / "run", "--judge", folder, "--device", "cpu")
    assert invoke(*common).exit_code == 0
    kept = tmp_path / "run" / "notes.txt"
    kept.write_text("mine")
    other = invoke(*common, "--limit", 2, "--reward", "verifier")
    assert other.exit_code == 2 and "limit: None -> 2" in other.output and "verifier" in other.output
    anew = invoke(*common, "--limit", 2, "--reward", "verifier", "--overwrite")
    assert anew.exit_code == 0, anew.output
    rows = [json.loads(x) for x in (tmp_path / "run" / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and "verifier" in rows[0] and kept.read_text() == "mine"
