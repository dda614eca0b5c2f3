"""open-instruct: a verifier function.

Import this module before the trainer builds its verifiers (it collects the subclasses of `VerifierFunction`), and
name `latent_rewards` in the data's `dataset` column. The query comes as lines "role: content"; those are messages
again here.

Source: open-instruct `open_instruct/{ground_truth_utils,vllm_utils,dataset_transformation}.py`, read on 26 November
2026 at commit e6c3044.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from open_instruct.ground_truth_utils import VerificationResult, VerifierFunction

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_turns, truth_slots, without_end

_TURN = re.compile(r"^(system|user|assistant|tool): ", re.MULTILINE)


class LatentRewardsVerifier(VerifierFunction):
    """Scores a prediction for its query; the label is the reference."""

    def __init__(self, verifier_config: Any = None) -> None:
        super().__init__("latent_rewards", weight=1.0, verifier_config=verifier_config)

    def __call__(
        self, tokenized_prediction: Sequence[int], prediction: str, label: object, query: str | None = None,
        rollout_state: object = None,
    ) -> VerificationResult:  # fmt: skip
        """One request.

        Raises:
            ValueError: no query.
        """
        if query is None:
            raise ValueError("open-instruct gave no query, and without what was asked nothing can be judged")
        row = {"prompt": _asked(query), "completion": without_end(prediction), **truth_slots(label)}
        (score,) = client().score([row])
        return VerificationResult(score=score)


def _asked(query: str) -> Any:
    """Messages of a query; a line inside of a message that begins like one begins one."""
    before, *found = _TURN.split(query)
    if before.strip() or not found:
        return plain_turns([{"role": "user", "content": query}])
    return plain_turns([{"role": r, "content": c.strip("\n")} for r, c in zip(found[::2], found[1::2], strict=True)])
