"""Whether an exported folder scores as the judge does in each stack that is installed: ten talks, its loader."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from latent_rewards.export import loaders
from latent_rewards.export.checkpoints import held_in_memory
from latent_rewards.judge.hf import HFJudge, Request
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading

TOLERANCE = 1e-5  # in float32; of the largest score, where that is above 1
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
        tolerance: largest distance that is rounding.
    """

    stack: str
    difference: float | None
    said: str = ""
    tolerance: float = TOLERANCE

    @property
    def good(self) -> bool:
        """Equal up to rounding, or not asked since it is not there."""
        return self.said == "not installed" or (self.difference is not None and self.difference <= self.tolerance)


def check(
    folder: Path, judge: HFJudge, prompt: JudgePrompt, pythons: Sequence[str] = (sys.executable,)
) -> Iterator[Checked]:
    """Ten conversations through every stack's own loader, in a process of its own each.

    Args:
        folder: of an export.
        judge: it was made of.
        prompt: it was made with.
        pythons: interpreters whose stacks are asked; the first one that has a stack.

    Yields:
        One result a stack.

    Raises:
        ValueError: an interpreter that is not there, or a conversation that the judge could not read.
    """
    for python in pythons:
        if shutil.which(python) is None:
            raise ValueError(
                f"no python interpreter at {python!r}; give the one of an environment, as in env/bin/python"
            )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = config["latent_rewards"]
    want = expected(folder, judge, prompt)
    for stack, distribution in DISTRIBUTIONS.items():
        found = next((python for python in pythons if _has(python, distribution)), None)
        if found is None:
            yield Checked(stack, None, "not installed")
        elif len(about["bias"]) > 1 and stack in ONE_OUTPUT:
            continue
        else:
            yield _asked(stack, folder, want - np.array(about["bias"]), found)


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
    reading: Reading = in_float32(judge).read([Request(prompt, rows, need)])[0]
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


def in_float32(judge: HFJudge) -> HFJudge:
    """The judge with the weights that its export holds, at the precision of the check; itself where it has both.

    Exports hold the checkpoint's weights, whatever precision (or quantization) the judge reads in; those of a judge
    with an adapter, or around a loaded model, are the ones in memory.
    """
    in_memory = held_in_memory(judge)
    if in_memory or judge._blocks is not None:
        model = judge.blocks.model
        if all(p.dtype == torch.float32 for p in model.parameters()):
            return judge
    if in_memory:
        return HFJudge(
            copy.deepcopy(model).float(), tokenizer=judge.encoder.tokenizer, max_length=judge.max_length,
            chat_template_kwargs=judge._chat_template_kwargs,
        )  # fmt: skip
    other = copy.copy(judge)  # as pickled: its arguments, nothing loaded
    other._load_options = {**judge._load_options, "dtype": "float32", "quantization": None}
    return other


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
    difference = float(np.abs(scores - want[:, : scores.shape[1]]).max())  # NaN is no score: not good
    return Checked(stack, difference, tolerance=TOLERANCE * max(1.0, float(np.abs(want).max())))


def _has(python: str, distribution: str) -> bool:
    if python == sys.executable:
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True
    asked = f"import importlib.metadata as m; m.version({distribution!r})"
    return subprocess.run([python, "-c", asked], capture_output=True, check=False).returncode == 0
