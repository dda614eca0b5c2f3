"""A judge spread over two ranks (gloo): the same scores, and no hang when the ranks hold different numbers of rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from servers import environment, free_port

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.judge.lockstep import LockstepJudge

PROGRAM = Path(__file__).parents[1] / "lockstep_ranks.py"


@pytest.mark.parametrize("mode", ["whole", "tp"])
def test_two_ranks_read_together(mode: str, folder: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()),
        str(PROGRAM), folder, str(tmp_path), mode,
    ]  # fmt: skip
    env = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    reward = ProbabilityWeightedReward(HFJudge(folder, dtype="float32", device="cpu"))
    assert [[len(rows) for rows, _ in facts["scores"]] for facts in ranks] == [[3, 1], [0, 2]]
    for facts in ranks:
        for rows, scores in facts["scores"]:
            np.testing.assert_allclose(scores, reward.score(rows, rows), rtol=1e-5)
        assert facts["error"].startswith("rank 1: row 0: prompt 'weighted' needs 'completion'"), "told on every rank"
    if mode == "tp":
        assert [facts["local"] for facts in ranks] == [[32, 32]] * 2, "each rank holds half of a (64, 32) weight"


def test_without_ranks_it_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"needs torch\.distributed"):
        LockstepJudge(object())


def test_a_judge_can_be_moved_between_steps(folder: str) -> None:
    judge = HFJudge(folder, dtype="float32", device="cpu")
    reward = ProbabilityWeightedReward(judge)
    before = reward.score(["p", "q"], ["a", "b"])
    judge.to("cpu").forget()
    assert reward.score(["p", "q"], ["a", "b"]).tolist() == before.tolist()
