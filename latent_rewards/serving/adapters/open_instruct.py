"""open-instruct: a verifier function.

Import this module before the trainer builds its verifiers (it collects the subclasses of `VerifierFunction`), and name
`latent_rewards` in the data's `dataset` column.

Source: open-instruct `open_instruct/ground_truth_utils.py`, read on 26 November 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from open_instruct.ground_truth_utils import VerificationResult, VerifierFunction

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import plain_prompt, truth_slots, without_end


class LatentRewardsVerifier(VerifierFunction):
    """Scores a prediction for its query; the label is the reference."""

    def __init__(self, verifier_config: Any = None) -> None:
        super().__init__("latent_rewards", weight=1.0, verifier_config=verifier_config)

    def __call__(
        self, tokenized_prediction: Sequence[int], prediction: str, label: Any, query: str | None = None, **_: Any
    ) -> VerificationResult:
        """One request.

        Raises:
            ValueError: no query.
        """
        if query is None:
            raise ValueError("open-instruct gave no query, and without what was asked nothing can be judged")
        row = {"prompt": plain_prompt(query), "completion": without_end(prediction), **truth_slots(label)}
        (score,) = client().score([row])
        return VerificationResult(score=score)
