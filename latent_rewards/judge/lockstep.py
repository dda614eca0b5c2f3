"""A judge spread over the ranks of a run (tensor parallel, ZeRO-3): all ranks read together, whatever they hold.

Every rank of such a judge must run every forward, or the others wait for ever. Here the rows of all ranks are put
together, every rank reads all of them, and each keeps its own: a rank with fewer rows, or with none, stays in step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from latent_rewards.files.sources import RowError
from latent_rewards.judge.encoding import Encoder
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Judge, Need, Reading, Request, Row


class LockstepJudge(Judge):
    """Wraps a sharded judge. Its methods are collective: every rank calls them equally often.

    Args:
        judge: this rank's part of the judge, e.g. `HFJudge(model, tp_plan="auto")`.
        group: the ranks that share it; default all.

    Raises:
        RuntimeError: `torch.distributed` is not initialised.
    """

    def __init__(self, judge: Judge, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_initialized():
            raise RuntimeError("a LockstepJudge needs torch.distributed; without ranks use the judge itself")
        self.judge, self.group = judge, group

    def __repr__(self) -> str:
        return f"LockstepJudge({self.judge!r})"

    @property
    def name(self) -> str:
        """The judge's."""
        return self.judge.name

    @property
    def fingerprint(self) -> str | None:
        """The judge's."""
        return self.judge.fingerprint

    @property
    def facts(self) -> Mapping[str, object]:
        """The judge's."""
        return self.judge.facts

    @property
    def revision(self) -> str | None:
        """The judge's."""
        return self.judge.revision

    @property
    def arithmetic(self) -> str | None:
        """The judge's, on this rank."""
        return self.judge.arithmetic

    @property
    def n_layers(self) -> int:
        """The judge's."""
        return self.judge.n_layers

    @property
    def capabilities(self) -> frozenset[str]:
        """The judge's."""
        return self.judge.capabilities

    @property
    def encoder(self) -> Encoder | None:
        """The judge's."""
        return self.judge.encoder

    @property
    def outages(self) -> int:
        """The judge's."""
        return self.judge.outages

    def check(self, prompt: JudgePrompt, need: Need) -> None:
        """As the judge; not collective."""
        self.judge.check(prompt, need)

    def forget(self) -> None:
        """As the judge; not collective."""
        self.judge.forget()

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        """Read this rank's rows, in one forward with those of all other ranks.

        Raises:
            ValueError: on every rank, when a row of any rank cannot be read, or the ranks ask for different things.
        """
        ours = [(r.prompt.hash, r.need, [dict(row) for row in r.rows], self._fault(r)) for r in requests]
        asked = self._gather(ours)
        faults = [f"rank {rank}: {fault}" for rank, theirs in enumerate(asked) for *_, fault in theirs if fault]
        if faults:
            raise ValueError("; ".join(faults))
        if len({tuple((key, need) for key, need, *_ in theirs) for theirs in asked}) > 1:
            raise ValueError("the ranks ask their shared judge for different prompts or readings in the same step")
        rank, whole = dist.get_rank(self.group), []
        for i, request in enumerate(requests):
            whole.append(request._replace(rows=[row for theirs in asked for row in theirs[i][2]]))
        starts = [sum(len(theirs[i][2]) for theirs in asked[:rank]) for i in range(len(requests))]
        return [
            reading.take(start, start + len(request.rows))
            for reading, start, request in zip(self.judge.read(whole), starts, requests, strict=True)
        ]

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
    def _fault(request: Request) -> str | None:
        try:
            request.prompt.render_all(request.rows)
        except RowError as err:
            return str(err)
        return None
