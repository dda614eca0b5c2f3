"""Labels of a judge prompt and their exact probabilities under any tokenizer.

A label may take several tokens ("10" on a tokenizer that splits numbers into digits) and may be spelled in several
ways ("Yes", " yes"). All spellings of all labels form one token trie; each inner node of the trie is one more position
to read, and the probability of a label is the exact sum over its paths.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """The answers a judge prompt allows, their values and spellings.

    Attributes:
        names: K label names, as shown in reports.
        values: K numbers, the rating each label stands for.
        spellings: for each label every text that counts as it; the mass of all spellings is summed.
    """

    names: tuple[str, ...]
    values: tuple[float, ...]
    spellings: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"labels: expected at least two, got {list(self.names)}")
        if not len(self.names) == len(self.values) == len(self.spellings):
            raise ValueError("labels: names, values and spellings differ in length")
        if bad := [v for v in self.values if not math.isfinite(v)]:
            raise ValueError(f"labels: values must be finite numbers, got {bad[0]}")
        seen: dict[str, str] = {}
        for name, spellings in zip(self.names, self.spellings, strict=True):
            for text in spellings:
                if not text:
                    raise ValueError(f"label {name!r} has an empty spelling")
                if seen.setdefault(text, name) != name:
                    raise ValueError(f"labels {seen[text]!r} and {name!r} share the spelling {text!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, float], spellings: Mapping[str, Sequence[str]] | None = None) -> Labels:
        """Build labels from {name: value} and optional {name: [spelling, ...]} (the name itself always counts)."""
        unknown = sorted(set(spellings or {}) - set(values))
        if unknown:
            raise ValueError(f"spellings given for unknown labels {unknown}; labels are {list(values)}")
        extra = {k: tuple(v) for k, v in (spellings or {}).items()}
        return cls(
            names=tuple(values),
            values=tuple(float(v) for v in values.values()),
            spellings=tuple(tuple(dict.fromkeys((name, *extra.get(name, ())))) for name in values),
        )

    @property
    def key(self) -> str:
        """Content hash: equal for equal labels, whatever object holds them."""
        return hashlib.sha256(json.dumps([self.names, self.values, self.spellings]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class LabelTrie:
    """All spellings of all labels as token paths of one tokenizer.

    Attributes:
        n_labels: K.
        paths: one token path per spelling.
        owners: index of the label that each path belongs to.
        contexts: the inner nodes, as the tokens that lead there; `contexts[0]` is the root, `()`.
        children: for each context the sorted token ids that continue it.
    """

    n_labels: int
    paths: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]
    contexts: tuple[tuple[int, ...], ...] = field(init=False)
    children: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        nodes: dict[tuple[int, ...], set[int]] = {(): set()}
        for path in self.paths:
            for i, token in enumerate(path):
                nodes.setdefault(path[:i], set()).add(token)
        order = sorted(nodes, key=lambda c: (len(c), c))
        object.__setattr__(self, "contexts", tuple(order))
        object.__setattr__(self, "children", tuple(tuple(sorted(nodes[c])) for c in order))

    @classmethod
    def build(cls, labels: Labels, encode: Callable[[str], Sequence[Sequence[int]]]) -> LabelTrie:
        """Turn labels into token paths.

        Args:
            labels: the labels.
            encode: text -> every token sequence that spells it at the rating position.

        Raises:
            ValueError: a label has no tokens, or two labels have the same tokens.
        """
        owner: dict[tuple[int, ...], int] = {}
        for k, spellings in enumerate(labels.spellings):
            for text in spellings:
                for ids in encode(text):
                    path = tuple(int(i) for i in ids)
                    if not path:
                        raise ValueError(f"label {labels.names[k]!r}: the tokenizer gives no token for {text!r}")
                    if owner.setdefault(path, k) != k:
                        raise ValueError(
                            f"labels {labels.names[owner[path]]!r} and {labels.names[k]!r} have the same tokens "
                            f"{list(path)} in this tokenizer; choose other label texts"
                        )
        return cls(len(labels), tuple(owner), tuple(owner.values()))

    @property
    def depth(self) -> int:
        """Most tokens that have to be appended to the prompt to read every label."""
        return max(len(c) for c in self.contexts)

    def chains(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Token chains to append to the prompt so that each context is read once.

        Returns:
            (chain, contexts read along it) pairs. A context's position is the prompt's last token plus its length.
        """
        leaves = [c for c in self.contexts if not any(o[: len(c)] == c and o != c for o in self.contexts)]
        taken: set[tuple[int, ...]] = set()
        out = []
        for leaf in leaves:
            mine = [leaf[:i] for i in range(len(leaf) + 1) if leaf[:i] not in taken]
            taken.update(mine)
            out.append((leaf, tuple(self.contexts.index(c) for c in mine)))
        return out

    def log_probs(self, child_logits: Sequence[Tensor], normalisers: Sequence[Tensor]) -> Tensor:
        """Exact log-probability of each label.

        ln p(path) = sum of its conditional log-probs; a path that other paths go beyond keeps only the mass that does
        not go on: p("1") = p(1) (1 - p(0 | 1)). Spellings of one label are summed.

        Args:
            child_logits: per context, (B, number of its children) logits in the order of `children`.
            normalisers: per context, (B,) log-sum-exp over the vocabulary; zeros at the root give scores up to a
                constant per row.

        Returns:
            (B, K) natural-log probabilities, float32.

        Source: the exact rule of methods.md section 1; compare Girrbach et al. 2025, eq. 1 (arXiv 2509.24678).
        """
        where = {c: i for i, c in enumerate(self.contexts)}
        step = [x.float() - n.float()[:, None] for x, n in zip(child_logits, normalisers, strict=True)]
        column = [{t: j for j, t in enumerate(ch)} for ch in self.children]
        per_label: list[list[Tensor]] = [[] for _ in range(self.n_labels)]
        for path, owner in zip(self.paths, self.owners, strict=True):
            total = torch.stack([step[where[path[:i]]][:, column[where[path[:i]]][t]] for i, t in enumerate(path)]).sum(
                0
            )
            if path in where:
                total = total + log1mexp(torch.logsumexp(step[where[path]], dim=1))
            per_label[owner].append(total)
        return torch.stack([torch.logsumexp(torch.stack(p), dim=0) for p in per_label], dim=1)


def log1mexp(x: Tensor) -> Tensor:
    """ln(1 - e^x) for x <= 0, accurate near both ends; rounding above 0 counts as 0.

    Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))", eq. 7.
    """
    x = x.clamp(max=0.0)
    near = x > -0.6931471805599453
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
