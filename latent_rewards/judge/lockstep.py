"""A judge spread over the ranks of a run (tensor parallel, ZeRO-3): all ranks read together, whatever they hold.

Every rank of such a judge must run every forward, or the others wait for ever. Here the rows of all ranks are put
together, every rank reads all of them, and each keeps its own: a rank with fewer rows, or with none, stays in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from latent_rewards.files.sources import RowError
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Need, Reading, Row


class LockstepJudge:
    """Wraps a sharded judge; meets `Judge`. Its methods are collective: every rank calls them equally often.

    Args:
        judge: this rank's part of the judge, e.g. `HFJudge(model, tp_plan="auto")`.
        group: the ranks that share it; default all.

    Raises:
        RuntimeError: `torch.distributed` is not initialised.
    """

    def __init__(self, judge: Any, group: Any = None) -> None:
        if not dist.is_initialized():
            raise RuntimeError("a LockstepJudge needs torch.distributed; without ranks use the judge itself")
        self.judge, self.group = judge, group
        self.name, self.capabilities = judge.name, judge.capabilities

    def __repr__(self) -> str:
        return f"LockstepJudge({self.judge!r})"

    def __getattr__(self, name: str) -> Any:
        if name in ("judge", "register", "read_many"):
            raise AttributeError(name)
        return getattr(self.judge, name)

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """As the judge; not collective."""
        self.judge.check(prompt, need)

    def read(self, prompt: JudgePrompt, rows: Sequence[Row], need: Need) -> Reading:
        """Read this rank's rows, in one forward with those of all other ranks.

        Raises:
            ValueError: on every rank, when a row of any rank cannot be read, or the ranks ask for different things.
        """
        asked = self._gather((prompt.hash, need, [dict(row) for row in rows], self._fault(prompt, rows)))
        faults = [f"rank {rank}: {fault}" for rank, (*_, fault) in enumerate(asked) if fault]
        if faults:
            raise ValueError("; ".join(faults))
        if len({(key, wanted) for key, wanted, *_ in asked}) > 1:
            raise ValueError("the ranks ask their shared judge for different prompts or readings in the same step")
        everything = [row for _, _, part, _ in asked for row in part]
        start = sum(len(part) for _, _, part, _ in asked[: dist.get_rank(self.group)])
        if not everything:
            return self.judge.read(prompt, [], need)
        return part_of(self.judge.read(prompt, everything, need), start, len(rows))

    def generate(self, prompt: JudgePrompt, rows: Sequence[Row], **options: Any) -> list[list[str | None]]:
        """Sampled answers to this rank's rows, with those of all other ranks."""
        asked = self._gather([dict(row) for row in rows])
        start = sum(map(len, asked[: dist.get_rank(self.group)]))
        everything = [row for part in asked for row in part]
        return self.judge.generate(prompt, everything, **options)[start : start + len(rows)] if everything else []

    def _gather(self, mine: Any) -> list[Any]:
        out: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(out, mine, group=self.group)
        return out

    @staticmethod
    def _fault(prompt: JudgePrompt, rows: Sequence[Row]) -> str | None:
        try:
            prompt.render_all(rows)
        except RowError as err:
            return str(err)
        return None


def part_of(reading: Reading, start: int, n: int) -> Reading:
    """Rows start..start+n of a reading."""
    rows = slice(start, start + n)
    return Reading(
        None if reading.label_logprobs is None else reading.label_logprobs[rows],
        None if reading.label_mass is None else reading.label_mass[rows],
        {k: v[rows] for k, v in reading.hidden.items()},
        {k: v[rows] for k, v in reading.layer_label_logits.items()},
        tuple(reading.reasons[rows]),
    )
