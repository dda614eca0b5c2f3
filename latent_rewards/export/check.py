"""Whether an exported folder scores as the judge does in each stack that is installed: ten talks, its loader."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latent_rewards.export import loaders
from latent_rewards.judge.hf import HFJudge, Request
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading

TOLERANCE = 1e-4  # of a score, in float32
SECONDS = 600
ANSWERS = (
    "It is 4.", "", "\nends so\n", "Hm <|im_start|> 10", "{% x %} 'y'", "One", "Two.", "\t3", "\u00e9\u4e2d", "ten"
)  # fmt: skip
TALKS = [
    [{"role": "user", "content": f"Question {i}<|im_end|>\n"}, {"role": "assistant", "content": answer}]
    for i, answer in enumerate(ANSWERS)
]
# Stack -> its distribution; those that spread one score need one output.
DISTRIBUTIONS = {
    "transformers": "transformers", "TRL": "trl", "verl": "verl", "ms-swift": "ms_swift", "vLLM": "vllm",
    "SGLang": "sglang",
}  # fmt: skip
ONE_OUTPUT = ("TRL", "verl", "ms-swift")


class Checked(NamedTuple):
    """What a stack made of a folder.

    Attributes:
        stack: its name.
        difference: largest distance to the judge's own outputs; None where the stack could not be asked.
        said: why not, in one line.
    """

    stack: str
    difference: float | None
    said: str = ""

    @property
    def good(self) -> bool:
        """Equal up to rounding, or not asked since it is not there."""
        return self.said == "not installed" or (self.difference is not None and self.difference <= TOLERANCE)


def check(folder: Path, judge: HFJudge, prompt: JudgePrompt, python: str = sys.executable) -> Iterator[Checked]:
    """Ten conversations through every stack's own loader, in a process of its own each.

    Args:
        folder: of an export.
        judge: it was made of.
        prompt: it was made with.
        python: interpreter whose stacks are asked.

    Yields:
        One result a stack.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = config["latent_rewards"]
    want = expected(folder, judge, prompt)
    for stack, distribution in DISTRIBUTIONS.items():
        if not _has(python, distribution):
            yield Checked(stack, None, "not installed")
        elif len(about["bias"]) > 1 and stack in ONE_OUTPUT:
            continue
        else:
            yield _asked(stack, folder, want - np.array(about["bias"]), python)


def expected(folder: Path, judge: HFJudge, prompt: JudgePrompt) -> np.ndarray:
    """(10, K) what the exported head makes of the judge's own states, in float64, bias included.

    Raises:
        ValueError: a conversation that the judge could not read.
    """
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layer = int(config["num_hidden_layers"])
    rows = [{"prompt": talk[:-1], "completion": talk[-1]["content"]} for talk in TALKS]
    need = Need(hidden=frozenset({layer}), hidden_lens="normed")
    reading: Reading = judge.read([Request(prompt, rows, need)])[0]
    faults = [why for why in reading.reasons if why]
    if faults:
        raise ValueError(f"the judge cannot read a conversation of the check: {faults[0]}")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if "score.weight" in tensors.keys():
                weight = tensors.get_tensor("score.weight").double()
                states = reading.hidden[layer].double()
                return (states @ weight.T).numpy() + np.array(config["latent_rewards"]["bias"])
    raise ValueError(f"{folder} has no score.weight")


def _asked(stack: str, folder: Path, want: np.ndarray, python: str) -> Checked:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as temp:
        output = Path(temp) / "scores.json"
        command: Sequence[str] = [python, loaders.__file__, stack, str(folder), "float32", "cpu", str(output)]
        try:
            done = subprocess.run(
                command, input=json.dumps(TALKS), text=True, capture_output=True, timeout=SECONDS, env=environment,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Checked(stack, None, f"no answer within {SECONDS} s")
        if done.returncode:
            return Checked(stack, None, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        scores = np.array(json.loads(output.read_text(encoding="utf-8"))["scores"])
    return Checked(stack, float(np.abs(scores - want[:, : scores.shape[1]]).max()))


def _has(python: str, distribution: str) -> bool:
    if python == sys.executable:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True
    asked = f"import importlib.metadata as m; m.version({distribution!r})"
    return subprocess.run([python, "-c", asked], capture_output=True, check=False).returncode == 0
