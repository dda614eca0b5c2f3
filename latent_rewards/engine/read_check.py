"""Is what was read together what the model says of a text alone? Asked at load and when texts get longer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from latent_rewards.engine.blocks import Blocks, States
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.schedule import Group, Wanted
from latent_rewards.engine.tree_plan import CannotShareError

_MOST = 0.3  # relative difference of states that no rounding explains
_NUMBERS = ("layer_idx", "layer_id", "layer_number", "idx")
_TELLING = ("window", "chunk", "block", "original_max", "scale", "topk", "local", "stride")


class ReadCheck:
    """Compares states with those of the model's plain forward of one text.

    At load with texts of 49 tokens, and windows and chunks of 16 where the model has longer ones, so that these show,
    too, and the model cut to as many layers as it takes to meet each kind of layer twice; later with all that are read,
    whenever a text is read through more of them than any so far, is more than twice as long, or crosses a number of the
    config that may change what the model does (a window, a chunk), with that text.

    Args:
        blocks: the judge.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self._telling = sorted(set(_telling_numbers(blocks.config.to_dict())))
        self._longest = {"shared": 49, "padded": 49}
        depth = telling_depth(blocks.layers)
        # Of a text alone, which no other text is packed with, and of several.
        self._deepest = {(way, several): depth for way in self._longest for several in (False, True)}

    def fault(self, way: str, group: Group, states: States, layers: Sequence[int]) -> str:
        """What is wrong with states just read, if it is time to look; empty if nothing is.

        Args:
            way: "shared" or "padded".
            group: the texts.
            states: what was read of them.
            layers: inner layers read.
        """
        i = group.longest
        n, known, several = len(group.sequences[i]), self._longest[way], len(group.sequences) > 1
        depth = Wanted(tuple(layers), states.final is not None).depth(self.blocks.n_layers)
        longer = n > 2 * known or any(known <= t < n for t in self._telling)
        if not group.targets or not (longer or depth > self._deepest[way, several]):
            return ""
        if way == "padded" and not several:
            return ""  # nothing was padded
        at = group.positions[i][-1:]
        row = sum(map(len, group.positions[: i + 1])) - 1
        inner = [max(layers)] if states.final is None else []
        wanted = Wanted(tuple(inner), states.final is not None)
        plain = self._alone([group.sequences[i]], [at], wanted)
        self._longest[way] = max(n, known)
        self._deepest[way, several] = max(depth, self._deepest[way, several])
        reason = self._difference(_deepest(states)[row : row + 1], plain, [group.sequences[i]], [at], wanted)
        return reason and f"{reason} on a text of {n} tokens"

    def difference(self, read: Callable[[list[list[int]], list[list[int]], int], States]) -> str:
        """What keeps `read(sequences, positions, head)` of small texts from giving what each gives alone.

        If anything is wrong with a model that is cut, which some are not made for, all layers are asked.
        """
        depth = telling_depth(self.blocks.layers)
        if depth < self.blocks.n_layers:
            with _cut(self.blocks, depth):
                if not self._difference_of_small(read):
                    return ""
        return self._difference_of_small(read)

    def _difference_of_small(self, read: Callable[[list[list[int]], list[list[int]], int], States]) -> str:
        vocab = self.blocks.config.vocab_size
        head = [(7 * i + 3) % vocab for i in range(24)]
        sequences = [
            [*head, *[(11 * i + 5 * b + 1) % vocab for i in range(20)], *[(13 * i + c) % vocab for i in range(3 + c)]]
            for b in range(2)
            for c in range(3)
        ]
        sequences.append(head + sequences[0][30:32])
        positions = [[len(s) - 1] for s in sequences]
        alone = [0, 5, 6]
        texts, at, wanted = [sequences[i] for i in alone], [positions[i] for i in alone], Wanted((), True)
        try:
            with _short_reach(self.blocks):
                ours = _deepest(read(sequences, positions, len(head)))
                plain = self._alone(texts, at, wanted)
        except CannotShareError as err:
            return str(err)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as err:
            said = (str(err).strip() or "no message").splitlines()[0]
            return f"its forward of such texts fails with {type(err).__name__} ({said})"
        return self._difference(ours[alone], plain, texts, at, wanted)

    def _alone(self, texts: Sequence[Sequence[int]], at: Sequence[list[int]], wanted: Wanted) -> Tensor:
        """The deepest states of texts, each read alone by the model's plain forward."""
        layers, final = wanted.layers, wanted.final
        return _deepest(read_states(self.blocks, texts, at, layers=layers, final=final, batch_tokens=1))

    def _difference(
        self,
        ours: Tensor,
        plain: Tensor,
        texts: Sequence[Sequence[int]],
        at: Sequence[list[int]],
        wanted: Wanted,
    ) -> str:
        """What to say of two readings of texts; empty if they differ by rounding.

        In float32 that is 1e-4 of the states. Coarser types round more the deeper the model is: then as much is allowed
        as twice what the model's own forward moves by when every block's output is moved by a unit in its last place.
        """
        error = _relative(ours, plain)
        told = f"its states differ from a plain forward's, relative difference {error:.1e}"
        if error < (1e-4 if plain.dtype == torch.float32 else 0.05):
            return ""
        if plain.dtype == torch.float32:
            return told
        with _last_places_moved(self.blocks):
            own = _relative(self._alone(texts, at, wanted), plain)
        if error < min(_MOST, 2 * own):
            return ""
        return f"{told}, where rounding explains {own:.1e}"


def refuse_if_random(blocks: Blocks, *, tokens: int = 300) -> None:
    """The same text read twice must give the same states.

    Args:
        blocks: the judge.
        tokens: length of the text: models that hash long texts read short ones exactly.

    Raises:
        ValueError: it does not (Reformer's hashing).
    """
    text = [(7 * i + 3) % blocks.config.vocab_size for i in range(min(tokens, blocks.longest_text))]
    first, again = (_deepest(read_states(blocks, [text], [[len(text) - 1]])) for _ in range(2))
    if (moved := _relative(again, first)) > 1e-3:
        raise ValueError(
            f"{type(blocks.model).__name__} reads the same text differently each time (relative difference "
            f"{moved:.1e}), as models that hash at random do, so it cannot judge"
        )


@contextlib.contextmanager
def _short_reach(blocks: Blocks, size: int = 16) -> Iterator[None]:
    """While active, windows and chunks are this short, where masks say how long they are (not in flash attention)."""
    config = blocks.decoder.config
    plain = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    before = {name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size") if plain}
    before = {name: value for name, value in before.items() if isinstance(value, int) and value > size}
    try:
        for name in before:
            setattr(config, name, size)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextlib.contextmanager
def _last_places_moved(blocks: Blocks) -> Iterator[None]:
    """While active, the output of every block is off by up to one unit in the last place, the same at each call."""
    random = torch.Generator().manual_seed(0)

    def move(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        hidden = output[0] if isinstance(output, tuple) else output
        noise = torch.rand(hidden.shape, generator=random).to(hidden.device) * 2 - 1
        moved = (hidden.float() * (1 + torch.finfo(hidden.dtype).eps * noise)).to(hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    hooks = [layer.register_forward_hook(move) for layer in blocks.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _deepest(states: States) -> Tensor:
    return states.inner[max(states.inner)] if states.final is None else states.final


def _relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours.float() - plain.float()).norm() / plain.float().norm())


def telling_depth(layers: Iterable[torch.nn.Module]) -> int:
    """How many of the first layers hold each kind twice, or as often as there are."""
    met: dict[str, int] = {}
    depth = 0
    for i, layer in enumerate(layers):
        kind = _kind(layer)
        met[kind] = met.get(kind, 0) + 1
        depth = i + 1 if met[kind] <= 2 else depth
    return depth


@contextlib.contextmanager
def _cut(blocks: Blocks, depth: int) -> Iterator[None]:
    """While active, the model ends after its first layers, with the norm and all else behind them as before."""
    layers = blocks.layers
    before = layers._modules
    layers._modules = dict(list(before.items())[:depth])
    try:
        yield
    finally:
        layers._modules = before


def _kind(layer: torch.nn.Module) -> str:
    """Modules of a layer, shapes of their weights, and their settings but for the layer's number."""
    parts: list[object] = [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
    for name, module in layer.named_modules():
        own = {
            k: v for k, v in vars(module).items()
            if isinstance(v, bool | int | float | str | None) and not k.startswith("_") and k not in _NUMBERS
        }  # fmt: skip
        parts.append((name, type(module).__qualname__, sorted(own.items())))
    return repr(parts)


def _telling_numbers(config: Mapping[str, object]) -> Iterator[int]:
    """Numbers of a config, also nested, at which a model may begin to do something else."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _telling_numbers(value)
        elif isinstance(value, int) and value >= 16 and any(word in str(name) for word in _TELLING):
            yield value
