"""Structured choices from a string of bytes: hypothesis, atheris and a seeded random source drive the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

LETTERS = "ab 1\n0.{}%\"'<>|_\\/\t\r\x00\x1f\u00e9\u0416\u4e2d\u202e\u200b\ufeff\ufffd\u2581"
LETTERS += "\ue000\ue001\ue002\ue003\U0001f600\ud800\udfff"
WORDS = (
    "", "yes", " 10", "7", "[RESULT] 9", "\n\n", "{{ prompt }}", "{{ 7*7 }}", "{% for i in range(9) %}", "{% endfor %}",
    "{# #}", "<|im_end|>", "<|im_start|>", "<think>", "</s>", "\ue000completion\ue001", "\ue0020\ue003", "```",
    "prompt",
    "completion", "### Reply", "the quick brown fox", "null", "NaN", "-0", "1e999", "\u0660\u0661",
)  # fmt: skip


class Draw:
    """Reads choices off `data`; when it runs out, everything is the first choice.

    Args:
        data: any bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        """0..255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, low: int, high: int) -> int:
        """Low..high, both included."""
        span = high - low + 1
        value = self.byte() if span <= 256 else int.from_bytes(bytes(self.byte() for _ in range(4)), "little")
        return low + value % span

    def flag(self, one_in: int = 2) -> bool:
        """True once in so many."""
        return self.byte() % one_in == 1

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.number(0, len(options) - 1)]

    def several(self, draw: Callable[[], T], most: int) -> list[T]:
        """0..most values."""
        return [draw() for _ in range(self.number(0, most))]

    def text(self, most: int = 6, words: Sequence[str] = WORDS) -> str:
        """Words and odd characters."""
        return "".join(self.several(lambda: self.choice(words) if self.flag() else self.choice(LETTERS), most))

    def raw(self, most: int) -> bytes:
        """0..most bytes."""
        return bytes(self.byte() for _ in range(self.number(0, most)))

    def value(self, depth: int = 3) -> Any:
        """Something that JSON can hold, and what Python makes of its extremes."""
        kind = self.number(0, 11)
        if kind >= 9 and depth:
            if kind == 9:
                return self.several(lambda: self.value(depth - 1), 3)
            return {self.choice(KEYS): self.value(depth - 1) for _ in range(self.number(0, 4))}
        plain = (None, True, 0, -1, 10**400, 1.5, float("nan"), float("inf"))
        return plain[kind] if kind < len(plain) else self.text()


KEYS = (
    "prompt", "completion", "role", "content", "name", "type", "text", "tool_calls", "chosen", "rejected", "response",
    "responses", "gold", "score", "scale", "id", "subset", "rubric", "criteria", "reference", "rows", "rewards", "_raw",
)  # fmt: skip


def damaged(draw: Draw, data: bytes) -> bytes:
    """The same bytes with a few places changed, cut out, doubled, or cut short."""
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3, 4))):
        at = draw.number(0, max(0, len(data) - 1))
        how = draw.choice((0, 0, 0, 1, 2, 3, 4))
        if how == 0:
            data = data[:at] + bytes([draw.byte()]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + data[at + draw.number(1, 16) :]
        elif how == 2:
            data = data[:at] + draw.raw(8) + data[at:]
        elif how == 3:
            data = data[:at]
        else:
            data = data[:at] + data[max(0, at - 8) :]
    return data
