"""Ten rows through the real packages of other stacks, each by its own entry point, in an environment of its own.

`python -m benchmarks.stacks` makes the environments and names their interpreters in the variables below.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import Server, serving

from benchmarks.stacks import STACKS, note_difference
from latent_rewards import HFJudge, VerifierReward

CALLS = Path(__file__).parents[1] / "stack_calls"
VARIABLES = {stack: variable for stack, (variable, *_) in STACKS.items()}
ROWS = [
    {"prompt": f"How many legs have {n} dogs?", "completion": said, "reference": str(4 * n)}
    for n, said in enumerate(
        ["None.", "4", "They have 8 legs in all.", "Twelve, I think", "16.", "No idea", "24 it is", "7 * 4 = 28", "32?",
         "Dogs have four legs each, so 36."]
    )
]  # fmt: skip
PROMPT = """
name: with_reference
kind: label
system: You judge.
body: |
  {{ prompt }}
  {% if reference %}The right answer is {{ reference }}.{% endif %}

  {{ completion }}
  Right? Yes or No.
optional: [reference]
labels: {'yes': 1, 'no': 0}
spellings: {'yes': ['Yes', ' yes'], 'no': ['No', ' no']}
"""


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "with_reference.yaml"
    path.write_text(PROMPT)
    return path


@pytest.fixture(scope="module")
def server(folder: str, prompt: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("stacks") / "log"
    with serving(folder, log, "--reward", f"verifier:{prompt}", "--dtype", "float32") as it:
        yield it


@pytest.mark.slow
@pytest.mark.parametrize("stack", VARIABLES)
def test_ten_rows_through_the_stacks_own_code(stack: str, folder: str, prompt: Path, server: Server) -> None:
    python = os.environ.get(VARIABLES[stack])
    if python is None:
        pytest.skip(f"{VARIABLES[stack]} names no python with {stack}")
    # Ours is installed in that environment: a path of this checkout would hide that it is not.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"LATENT_REWARDS_SERVER": server.url}
    arguments = {"openrlhf": [server.url], "verifiers": [], "ms_swift": []}.get(stack, [folder])
    if stack.startswith("trl"):
        env |= {"LATENT_REWARDS_PROMPT": str(prompt)}
    calls = CALLS / f"{stack.removesuffix('_oldest')}_calls.py"
    done = subprocess.run(
        [python, str(calls), *arguments], input=json.dumps(ROWS), env=env, cwd=prompt.parent,
        text=True, capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.splitlines()[-1])
    reward = VerifierReward(HFJudge(folder, dtype="float32", device="cpu"), prompt=prompt)
    columns = {key: [row[key] for row in ROWS] for key in ("prompt", "completion", "reference")}
    want = reward.score(columns["prompt"], columns["completion"], reference=columns["reference"])
    without = reward.score(columns["prompt"], columns["completion"])
    assert np.abs(want - without).max() > 1e-3, "the reference counts"
    for entry, scores in got.items():
        np.testing.assert_allclose(scores, want, atol=1e-5, err_msg=entry)
        note_difference(stack, entry, float(np.abs(np.array(scores) - want).max()))
