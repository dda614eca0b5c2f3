"""What the template of a judge prompt may hold: slots, text and conditions. Nothing in it can call, loop or reach."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

from jinja2 import StrictUndefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

ENV = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True
)

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr, nodes.Not,
    nodes.And, nodes.Or,
)  # fmt: skip
_WRAPPED = (nodes.Filter, nodes.FilterBlock, nodes.Getattr, nodes.Getitem, nodes.Call)
_SPECIAL = {"self", "super", "caller", "loop", "varargs", "kwargs"}
_RESERVED = "\ue000\ue001\ue002\ue003"
_DEEPEST = 10
_MARK = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*)\ue001")
_MOST_COMBINED = 6


@functools.lru_cache(maxsize=256)
def slots_of(body: str) -> tuple[str, ...]:
    """Slots of a template, sorted. One that does more than fill slots is refused before any of it is compiled or run.

    Raises:
        ValueError: a construct other than text, slots, `{% if %}` and its conditions; or conditions nested too deeply.
        TemplateError: no template.
    """
    tree = ENV.parse(body)
    names = {n.name for n in tree.find_all(nodes.Name) if n.ctx == "load"}
    for node in tree.find_all(_WRAPPED):
        for name in sorted({n.name for n in node.find_all(nodes.Name)}):
            raise ValueError(f"slot {name!r} must stand alone, as {{{{ {name} }}}}, without filters")
    for node in tree.find_all(nodes.Node):
        special = isinstance(node, nodes.Name) and node.name in _SPECIAL
        if not isinstance(node, _ALLOWED) or special:
            what = f"the name {node.name!r}" if isinstance(node, nodes.Name) else type(node).__name__
            raise ValueError(f"line {node.lineno}: a body holds text, slots and {{% if slot %}} only, not {what}")
    if _depth(tree) > _DEEPEST:
        raise ValueError(f"conditions are nested more than {_DEEPEST} deep")
    return tuple(sorted(names))


class _Mark:
    """Stands in for a slot's text while a template renders: prints as a marker, is true when the text is not empty."""

    def __init__(self, slot: str, filled: bool) -> None:
        self.slot, self.filled = slot, filled

    def __str__(self) -> str:
        return f"\ue000{self.slot}\ue001"

    def __bool__(self) -> bool:
        return self.filled


@functools.lru_cache(maxsize=256)
def render_body(body: str, filled: tuple[tuple[str, bool], ...]) -> tuple[str, ...]:
    """A template with its slots left open: our text, a slot's name, our text, a slot's name, ..., our text.

    Args:
        body: the template.
        filled: each slot, and whether its text is not empty.
    """
    return tuple(_MARK.split(ENV.from_string(body).render({s: _Mark(s, f) for s, f in filled}).strip()))


def check_words(**texts: str) -> None:
    """Refuse the private characters that mark slots while a prompt is put together."""
    for key, text in texts.items():
        if any(c in text for c in _RESERVED):
            raise ValueError(f"{key!r} holds one of the characters U+E000 to U+E003, which are reserved")


def ways_to_fill(slots: tuple[str, ...]) -> Iterator[tuple[tuple[str, bool], ...]]:
    """Which slots hold text: every combination of the columns (of many: each one alone empty, and all of them)."""
    columns = [s for s in slots if s not in ("prompt", "completion")]
    some: Iterator[tuple[str, ...]] | list[tuple[str, ...]]
    if len(columns) <= _MOST_COMBINED:
        some = itertools.chain.from_iterable(itertools.combinations(columns, n) for n in range(len(columns) + 1))
    else:
        some = [(), *((c,) for c in columns), tuple(columns)]
    yield from (tuple((s, s not in empty) for s in slots) for empty in some)


def _depth(node: nodes.Node) -> int:
    inner = max((_depth(child) for child in node.iter_child_nodes()), default=0)
    return inner + isinstance(node, nodes.If | nodes.CondExpr)
