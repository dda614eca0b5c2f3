"""In which way texts are read, and why: shared prefixes, else padded batches, else each text alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.prefix_cache import PrefixCache
from latent_rewards.engine.read_check import ReadCheck, refuse_if_random
from latent_rewards.engine.schedule import Group
from latent_rewards.engine.tree_plan import CannotShareError

logger = logging.getLogger(__name__)

Way = Literal["shared", "padded", "alone"]


class Ways:
    """What has turned out of a model: a way that fails, or gives something else than a forward of one text, is left.

    Args:
        blocks: the judge.
        cache: given up where memory is short.
        batch_tokens: most tokens in one forward; halved where memory is short.
        share_prefixes: whether sharing is wanted.
        pads: whether texts that are read whole may lie in one padded batch.

    Attributes:
        shares: whether prefixes are shared.
    """

    def __init__(
        self, blocks: Blocks, cache: PrefixCache, *, batch_tokens: int, share_prefixes: bool, pads: bool
    ) -> None:
        self.blocks, self.cache, self.batch_tokens, self.pads = blocks, cache, batch_tokens, pads
        self.check = ReadCheck(blocks)
        self.shares = share_prefixes and _can_share(blocks)
        self._why = "its attention cannot share prefixes" if share_prefixes else "share_prefixes=False was asked for"
        self._length_matters = False
        self._warned: set[str] = set()
        if share_prefixes and not self.shares:
            self._warn(f"{self._name}: {self._why}; reading without them")

    @property
    def _name(self) -> str:
        return type(self.blocks.model).__name__

    @property
    def sharing(self) -> str:
        """One line on how texts are read and why."""
        if not self.shares:
            return f"whole texts{'' if self.pads else ', each alone'}: {self._why}"
        out = "shared prefixes"
        if self.blocks.rope:
            out += "; texts on either side of a switch of the rotary frequencies apart"
        return out

    @contextlib.contextmanager
    def trying(self, group: Group, layers: Sequence[int]) -> Iterator[Way]:
        """One attempt at a group, in the way given; if its states are still None afterwards, another one is due.

        Raises:
            torch.OutOfMemoryError: batches cannot get smaller.
        """
        way, reason = self._way(), ""
        try:
            yield way
            if group.states is not None and way != "alone":
                reason = self.check.fault(way, group, group.states, layers)
        except CannotShareError as err:
            reason = str(err)
        except torch.OutOfMemoryError:
            if self.batch_tokens <= 64:
                raise
            group.states = None
            self._halve()
        if reason and way != "alone":
            group.states = None
            self.leave(way, reason)

    def leave(self, way: Literal["shared", "padded"], reason: str) -> None:
        """Read this way no more.

        Raises:
            ValueError: the model reads the same text differently each time.
        """
        if way == "shared":
            self.shares, self._why = False, reason
            self._warn(f"{self._name}: shared prefixes do not work here ({reason}); reading without them from now on")
            self.check_padded()
        else:
            self.pads, self._length_matters = False, True
            refuse_if_random(self.blocks)
            self._warn(f"{self._name}: padded batches do not work here ({reason}); reading each text alone")

    def check_padded(self) -> None:
        """Small texts in a padded batch must give what each gives alone; asked when padded batches come into use."""
        if self.pads and (reason := self.check.difference(self._read_padded)):
            self.leave("padded", reason)

    def _read_padded(self, sequences: list[list[int]], positions: list[list[int]], _: int) -> States:
        return read_states(self.blocks, sequences, positions, batch_tokens=self.batch_tokens)

    def whole_texts(self, group: Group, way: Way) -> Group:
        """What is read of a group without sharing: texts up to each position, where what lies behind it matters."""
        return group.ends() if way == "alone" and self._length_matters else group

    def _way(self) -> Way:
        if self.shares:
            return "shared"
        return "padded" if self.pads else "alone"

    def _halve(self) -> None:
        self.batch_tokens //= 2
        self.cache.clear()
        torch.cuda.empty_cache()
        logger.warning("out of memory: going on with batches of %d tokens", self.batch_tokens)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            logger.warning("%s", message)
        self._warned.add(message)


def _can_share(blocks: Blocks) -> bool:
    """Whether the model's attention goes through transformers' interface, so that ours can take its place."""
    can = getattr(blocks.model, "_can_set_attn_implementation", None)
    return bool(can and can())
