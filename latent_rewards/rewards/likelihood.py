"""How likely the judge finds a text: the reply itself (GPTScore), or the reference answer after the reply (RLPR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from latent_rewards import readouts
from latent_rewards.judge.hf import Judge, Need, Reading
from latent_rewards.judge.reading import Request, Row
from latent_rewards.judge.thoughts import settled
from latent_rewards.rewards.latent import LatentReward

Of = Literal["completion", "reference"]


class LikelihoodReward(LatentReward):
    """Log-likelihood of the reply, or of the reference answer after it, token by token in one forward.

    With l_t = ln p(y_t | y_<t, what the judge was shown) of the T tokens of the target y:
    of="completion":  y is the completion, shown are the task and an aspect: GPTScore;
    of="reference":   y is the row's reference answer, shown are the task and the completion with its thoughts: the
    reward of RLPR and VeriFree without a verifier, with a frozen judge in the policy's place.

    Args:
        judge: a judge, or a model name.
        of: "completion" or "reference"; default what `prompt` reads, without one "completion".
        normalise: "mean" of l_t and "sum" of l_t, nats; "mean_probability", the mean of exp(l_t), as RLPR has it;
            "probability", exp of the sum, as VeriFree has it.
        baseline: take away the same of the reference without the completion, so that an answer that is easy to guess
            is worth nothing. It is the same for all completions of a prompt and changes no order among them.
        aspect: quality that the judge is asked to write with, for prompts with an `aspect` slot; a column of that name
            comes first.
        **options: see `Reward`. `prompt` is one of kind "likelihood".

    White space around the target is not read. A reference that is missing or empty is an error; an empty completion
    has no score.

    Raises:
        ValueError: unknown options, or a prompt of another kind.

    Source: GPTScore (Fu et al. 2023, arXiv 2302.04166); RLPR (arXiv 2506.18254), whose baseline is that without the
    reasoning; VeriFree (arXiv 2505.21493).
    """

    kind = "likelihood"
    default_prompt = "likelihood_completion"

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        of: Of | None = None,
        normalise: readouts.Normalise = "mean",
        baseline: bool = False,
        aspect: str | None = None,
        **options: Any,
    ) -> None:
        if of not in (None, "completion", "reference"):
            raise ValueError(f"of must be 'completion' or 'reference', got {of!r}")
        if normalise not in readouts.NORMALISED:
            raise ValueError(f"normalise must be one of {tuple(readouts.NORMALISED)}, got {normalise!r}")
        if of is not None and options.get("prompt") is None:
            options["prompt"] = f"likelihood_{of}"
        self.of, self.normalise, self.baseline, self.aspect = of, normalise, bool(baseline), aspect
        super().__init__(judge, **options)

    def _prepare(self) -> None:
        prompt = self.prompt
        self.need.check(prompt)
        read = "completion" if prompt.target == "completion" else "reference"
        if self.of not in (None, read):
            raise ValueError(f"of={self.of!r}, but the target of prompt {prompt.name!r} is {prompt.target!r}")
        if self.baseline and "completion" not in prompt.shown:
            raise ValueError(
                f"baseline: prompt {prompt.name!r} does not show the completion, so there is nothing to leave out; "
                "it is for of='reference' (for of='completion' see the contrastive reward)"
            )
        if self.aspect is not None and "aspect" not in prompt.slots:
            raise ValueError(f"aspect: prompt {prompt.name!r} has no {{{{ aspect }}}} slot")
        self.of = "completion" if read == "completion" else "reference"
        super()._prepare()

    def _default_name(self) -> str:
        known = {"likelihood_completion": "likelihood", "likelihood_reference": "likelihood-reference"}
        return known.get(self.prompt.name) or super()._default_name()

    def options(self) -> dict[str, Any]:
        """How token log-probabilities become a score, and the aspect."""
        return {"normalise": self.normalise, "baseline": self.baseline, "aspect": self.aspect}

    @property
    def need(self) -> Need:
        """The target's tokens."""
        return Need(target=True)

    @property
    def score_range(self) -> tuple[float, float]:
        """0 to 1 of probabilities; log-likelihoods have no lower end."""
        low, high = (0.0, 1.0) if "probability" in self.normalise else (-np.inf, 0.0)
        return (low - high, high - low) if self.baseline else (low, high)

    def readout(self, reading: Reading) -> Tensor:
        """(B,) nats or probabilities, without a baseline."""
        assert reading.target_logprobs is not None
        return readouts.likelihood(reading.target_logprobs, self.normalise)

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """That of the rows, with the aspect where no column says it; with a baseline that without completions, too."""
        said = {} if self.aspect is None else {"aspect": self.aspect}
        (own,) = super().requests([{**said, **row} for row in rows])
        if not self.baseline:
            return [own]
        empty = settled("", self.prompt.treatment)
        return [own, own._replace(rows=[{**row, "completion": empty} for row in own.rows])]

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) scores; NaN where the target could not be read."""
        scores = [LatentReward.scores_of(self, rows, [reading]) for reading in readings]
        return scores[0] - scores[1] if self.baseline else scores[0]

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """Tokens of the target on average, and the mean baseline."""
        values = [reading.target_logprobs for reading in readings if reading.target_logprobs is not None]
        metrics = {"tokens": float((~values[0].isnan()).sum(1).double().mean())}
        if self.baseline:
            metrics["baseline"] = float(self.readout(readings[1]).nanmean())
        return {"metrics": metrics}
