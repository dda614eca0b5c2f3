"""The LM head of a judge: its rows times a state where that is all it does, the model's own code otherwise."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_rewards.engine.decoder import embedding

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

ROWS = "its rows, in float32"
_MOST_LOGITS = 1 << 24  # of the model's own head at once
_LOUD = 64.0  # logits that show a cap, which small ones hide
_BYPASS_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Head:
    """Logits of final (normed) states.

    Until `choose` has compared the two ways, a head that is plainly linear is read by its rows.

    Args:
        model: a causal LM, PEFT-wrapped or not.
        decoder: the part of it whose output the head reads.
        config: of the text.
    """

    def __init__(self, model: PreTrainedModel, decoder: nn.Module, config: PretrainedConfig) -> None:
        self.model, self.decoder, self.config = model, decoder, config
        self.module: nn.Linear = model.get_output_embeddings()
        self.why_own = _why_not_rows(model, self.module)

    @property
    def kind(self) -> str:
        """What is used, in a line."""
        return ROWS if self.why_own is None else f"the model's own: {self.why_own}"

    @functools.cached_property
    def weight(self) -> Tensor:
        """(V, D) rows of the head; of a head that is spread over ranks, all of them, gathered once."""
        return _whole(self.module.weight)

    @functools.cached_property
    def bias(self) -> Tensor | None:
        """(V,) or None."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else _whole(bias)

    def choose(self, states: Tensor, logits: Tensor) -> None:
        """Settle how the head is read, from T states of a text and the model's own logits there.

        Rows serve only where they give what the model's own code gives: on these states, and on louder ones, since a
        soft cap changes small logits by less than rounding.

        Args:
            states: (T, D) of the decoder, after the final norm.
            logits: (T, V) of the whole model on the same text.

        Raises:
            ValueError: neither way gives the model's logits.
        """
        name, unit = type(self.model).__name__, self._unit(states)
        self.why_own = self.why_own or self._why_not_shape(states, logits)
        some, whole = _some_of(logits.shape[-1]), logits
        logits, rows = logits[:, some], self.rows(states, some.tolist()) if self.why_own is None else None
        try:
            own: Tensor | None = self.own(states)[:, some]
        except _BYPASS_ERRORS as err:
            logger.debug("%s: its head does not run alone (%s)", name, err)
            own = None
        if own is None or not same_logits(own, logits, unit):
            if rows is None or not (same_logits(rows, logits, unit) and self._no_row_apart(states, whole, unit)):
                raise ValueError(
                    f"{name}: its logits do not follow from the decoder's last states "
                    f"({self.why_own or 'rows of the LM head do not give them'}), so this judge cannot be read; a "
                    "causal LM that transformers loads by itself can"
                )
            return
        if rows is not None:
            loudest = (3e4 / states.abs().max().float().clamp(min=1e-6)).item()
            loud = states * min(max(4.0, _LOUD / max(rows.abs().max().item(), 1e-6)), loudest)
            loud_rows, loud_own = self.rows(loud, some.tolist()), self.own(loud)[:, some]
            same = same_logits(rows, own, unit) and same_logits(loud_rows, loud_own, unit)
            if not (same and self._no_row_apart(states, whole, unit)):
                self.why_own = "its logits are more than the rows of its LM head times the state"
        if self.why_own is not None:
            logger.warning("%s: its own head is used (%s)", name, self.why_own)

    def _why_not_shape(self, states: Tensor, logits: Tensor) -> str | None:
        """Why the head's rows cannot be those of the logits, by their number and width; None where they can."""
        rows, width = self.weight.shape
        if width != states.shape[-1]:
            return f"its rows are {width} wide, the decoder's states {states.shape[-1]}"
        return None if rows == logits.shape[-1] else f"it has {rows} rows, its model {logits.shape[-1]} logits"

    def _no_row_apart(self, states: Tensor, logits: Tensor, unit: float) -> bool:
        """Whether no token's logit is something else than its row gives, masked for one: all rows, in their own type.

        The rows in float32 tell more, but of a large vocabulary they are a sample (`_some_of`).
        """
        bias = None if self.bias is None else self.bias.to(self.weight)
        ours = shape_logits(self.config, nn.functional.linear(states.to(self.weight), self.weight, bias).float())
        return bool((logits.to(ours.device) - ours).abs().max() <= 2e-5 + 32 * unit * ours.abs().max())

    def logits(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """(P, len(ids)) logits, float32; (P, V) where `ids` is None."""
        if self.why_own is None:
            return self.rows(states, ids)
        pick = slice(None) if ids is None else torch.as_tensor(list(ids))
        return torch.cat([self.own(part)[:, pick] for part in self._parts(states)])

    def log_normaliser(self, states: Tensor, *, chunk: int = 16_384) -> Tensor:
        """(P,) log-sum-exp over the whole vocabulary, float32, without a (P, V) tensor in float32 at once."""
        if self.why_own is not None:
            return torch.cat([torch.logsumexp(self.own(part), dim=-1) for part in self._parts(states)])
        total = torch.full((len(states),), -torch.inf, device=states.device)
        for start in range(0, len(self.weight), chunk):
            logits = self.rows(states, slice(start, start + chunk))
            total = torch.logaddexp(total, torch.logsumexp(logits, -1).to(total.device))
        return total

    def log_probs(self, states: Tensor, tokens: Sequence[int], *, chunk: int = 16_384, at_once: int = 256) -> Tensor:
        """(P,) ln p(tokens[i]) at state i, float32, without more than `at_once` x `chunk` logits at once.

        Args:
            states: (P, D) after the final norm.
            tokens: P token ids.
            chunk: of the vocabulary.
            at_once: states whose logits are held together.
        """
        wanted = torch.as_tensor(list(tokens), dtype=torch.long, device=states.device)
        parts = zip(states.split(at_once), wanted.split(at_once), strict=True)
        return torch.cat([self._log_probs(x, own, chunk) for x, own in parts]) if len(states) else states.new_zeros(0)

    def _log_probs(self, states: Tensor, tokens: Tensor, chunk: int) -> Tensor:
        if self.why_own is not None:
            parts = zip(self._parts(states), tokens.split(self._step), strict=True)
            return torch.cat([torch.log_softmax(self.own(x), -1).gather(1, t[:, None])[:, 0] for x, t in parts])
        total = torch.full((len(states),), -torch.inf, device=states.device)
        own = torch.full((len(states),), torch.nan, device=states.device)
        for start in range(0, len(self.weight), chunk):
            logits = self.rows(states, slice(start, start + chunk)).to(states.device)
            total = torch.logaddexp(total, torch.logsumexp(logits, -1))
            here = torch.nonzero((tokens >= start) & (tokens < start + logits.shape[1]))[:, 0]
            own[here] = logits[here, tokens[here] - start]
        return own - total

    def rows(self, states: Tensor, ids: Sequence[int] | slice | None = None) -> Tensor:
        """Logits by rows of the head, float32."""
        whole = slice(None) if ids is None else ids
        pick = whole if isinstance(whole, slice) else torch.as_tensor(list(whole), device=self.weight.device)
        weight = self.weight[pick]
        logits = states.to(weight.device).float() @ weight.float().T
        if self.bias is not None:
            logits = logits + self.bias[pick].float()
        return shape_logits(self.config, logits)

    def own(self, states: Tensor) -> Tensor:
        """(P, V) logits by the model's own code, float32: its decoder is bypassed, so that only its head runs."""
        shell = self._shell
        if isinstance(shell, tuple):
            answer: object = (states[:, None], *shell[1:])
        else:
            answer = type(shell)(**{**shell, "last_hidden_state": states[:, None]})
        ids = torch.zeros(len(states), 1, dtype=torch.long, device=embedding(self.model).device)
        with _bypassed(self.decoder, answer):
            return self.model(input_ids=ids, use_cache=False).logits[:, 0].float()

    @functools.cached_property
    def _shell(self) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """What the decoder gives for one token: the rest of what a head may look for, such as router logits."""
        ids = torch.ones(1, 1, dtype=torch.long, device=embedding(self.model).device)
        return self.decoder(input_ids=ids, use_cache=False)

    def _parts(self, states: Tensor) -> Iterator[Tensor]:
        return iter(states.split(self._step)) if len(states) else iter((states,))

    @property
    def _step(self) -> int:
        """States whose logits the model's own head may give at once."""
        return max(1, _MOST_LOGITS // self.config.vocab_size)

    def _unit(self, states: Tensor) -> float:
        """Relative rounding of the coarser of states and head."""
        weight = getattr(self.module, "weight", None)
        types = [states.dtype, weight.dtype if isinstance(weight, Tensor) else states.dtype]
        return max(torch.finfo(t).eps / 2 for t in types if t.is_floating_point)


def _some_of(vocab: int, *, ends: int = 1024, between: int = 16_384) -> Tensor:
    """Token ids to compare logits at: the first, the last, and some between them, or all of a small vocabulary."""
    if vocab <= 2 * ends + between:
        return torch.arange(vocab)
    inner = torch.arange(ends, vocab - ends, (vocab - 2 * ends) // between)
    return torch.cat([torch.arange(ends), inner, torch.arange(vocab - ends, vocab)])


def same_logits(ours: Tensor, theirs: Tensor, unit: float) -> bool:
    """Whether two (T, V) logits differ by rounding alone.

    In float32 that is some 1e-4 at logits of 30. Coarser types hide small differences of single logits, but not one
    that is systematic: the slope of the difference over the logits averages the rounding away.

    Args:
        ours: float32, of a product in float32.
        theirs: of the model, rounded to its own type.
        unit: relative rounding of that type, half its epsilon.
    """
    if ours.shape != theirs.shape:
        return False
    ours, gap = ours.float(), theirs.float().to(ours.device) - ours.float()
    largest = ours.abs().max()
    if unit < 1e-6:
        return bool(gap.abs().max() <= 2e-5 + 32 * unit * largest)
    slope = (gap * ours).sum() / ours.square().sum().clamp(min=1e-12)
    spread = gap.square().mean().sqrt() / ours.square().mean().sqrt().clamp(min=1e-6)
    return bool(gap.abs().max() <= 8 * unit * largest and spread <= 2 * unit and slope.abs() <= 0.2 * unit)


def shape_logits(config: PretrainedConfig, logits: Tensor) -> Tensor:
    """What some families do to their logits: Granite divides, Cohere multiplies, Gemma caps; `config` is the text's."""
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _why_not_rows(model: nn.Module, head: nn.Module) -> str | None:
    """Why the head is not plainly its weight times the state; None where nothing speaks against it."""
    kind = type(head)
    weight: Any = getattr(head, "weight", None)
    spread = hasattr(weight, "full_tensor")  # gathered by hooks
    changed = "forward" in vars(head) and not hasattr(head, "_hf_hook")  # Accelerate's moves tensors only
    if not issubclass(kind, nn.Linear) or kind.forward is not nn.Linear.forward or changed:
        return f"its LM head is a {kind.__module__}.{kind.__qualname__}{', with a forward of its own' * changed}"
    if not spread and type(weight) is not nn.Parameter:
        return f"the weight of its LM head is a {type(weight).__name__}"
    if weight.is_meta or not weight.is_floating_point():
        return f"the weight of its LM head is offloaded, or of type {weight.dtype}"
    around = [head] if not spread else []
    around += [m for m in model.modules() if m is not head and any(part is head for part in m.modules())]
    hooked = [m for m in around if m._forward_hooks or m._forward_pre_hooks]
    return f"hooks on {type(hooked[0]).__name__}" if hooked else None


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextlib.contextmanager
def _bypassed(module: nn.Module, answer: object) -> Iterator[None]:
    """While active, calling the module gives `answer`; its hooks, which have had their say, stay quiet."""
    names = ("forward", "_forward_hooks", "_forward_pre_hooks")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    module.forward = lambda *_, **__: answer
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        del module.forward
        vars(module).update(before)
