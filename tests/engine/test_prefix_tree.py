"""The plan of shared prefixes, against brute force over all prefixes; the cache, against what was put into it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards.engine.prefix_tree import Node, build_tree

# Few letters and short heads, so that prefixes meet, nest and repeat.
RUN = st.lists(st.integers(0, 2), max_size=6)
SEQUENCES = st.lists(st.tuples(RUN, RUN, RUN).map(lambda x: [*x[0], *x[1], *x[2]] or [1]), min_size=1, max_size=12)


def everywhere(sequences: list[list[int]]) -> list[list[int]]:
    return [list(range(len(s))) for s in sequences]


def path(nodes: list[Node], i: int) -> list[int]:
    """Tokens from the root to the end of node i."""
    above = path(nodes, nodes[i].parent) if nodes[i].parent >= 0 else []
    assert nodes[i].start == len(above)
    return above + nodes[i].tokens


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}


def below(nodes: list[Node], sequences: list[list[int]], i: int) -> int:
    """How many different sequences pass through node i."""
    head = path(nodes, i)
    return len({tuple(s) for s in sequences if s[: len(head)] == head})


def common(runs: list[list[int]]) -> int:
    n = 0
    while all(len(r) > n for r in runs) and len({r[n] for r in runs}) == 1:
        n += 1
    return n


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 20))
def test_every_sequence_reassembles_from_its_path(sequences: list[list[int]], min_saving: int) -> None:
    nodes = build_tree(sequences, everywhere(sequences), min_saving=min_saving)
    found = {read: path(nodes, i)[: node.start + at + 1] for i, node in enumerate(nodes) for at, read in node.reads}
    wanted = [s[: n + 1] for s in sequences for n in range(len(s))]
    assert [found[read] for read in range(len(wanted))] == wanted
    assert sum(len(n.reads) for n in nodes) == len(wanted)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 20))
def test_parents_come_first_and_siblings_side_by_side(sequences: list[list[int]], min_saving: int) -> None:
    nodes = build_tree(sequences, everywhere(sequences), min_saving=min_saving)
    assert all(n.parent < i and n.tokens for i, n in enumerate(nodes))
    runs = [b.parent for a, b in pairwise([Node([], 0, -2), *nodes]) if a.parent != b.parent]
    assert len(runs) == len(set(runs))
    for i, node in enumerate(nodes):
        assert node.children == sum(n.parent == i for n in nodes)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 20))
def test_what_saves_enough_is_shared_and_nothing_else(sequences: list[list[int]], min_saving: int) -> None:
    nodes = build_tree(sequences, everywhere(sequences), min_saving=min_saving)
    for parent in range(-1, len(nodes)):
        siblings = [n.tokens for n in nodes if n.parent == parent]
        for a in range(len(siblings)):
            for b in range(a + 2, len(siblings) + 1):
                assert common(siblings[a:b]) * (b - a - 1) < min_saving
    for i, node in enumerate(nodes):
        if node.children:
            assert len(node.tokens) * (below(nodes, sequences, i) - 1) >= min_saving


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_every_prefix_once_when_any_saving_counts(sequences: list[list[int]]) -> None:
    nodes = build_tree(sequences, everywhere(sequences), min_saving=1)
    assert sum(len(n.tokens) for n in nodes) == len(prefixes(sequences))


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 20))
def test_duplicates_share_a_leaf(sequences: list[list[int]], min_saving: int) -> None:
    doubled = sequences + sequences
    nodes = build_tree(doubled, [[len(s) - 1] for s in doubled], min_saving=min_saving)
    at = {read: (i, offset) for i, node in enumerate(nodes) for offset, read in node.reads}
    n = len(sequences)
    assert all(at[i] == at[i + n] for i in range(n))
    once = build_tree(sequences, [[len(s) - 1] for s in sequences], min_saving=min_saving)
    assert [x.tokens for x in nodes] == [x.tokens for x in once]


def test_a_sequence_that_is_a_prefix_of_another() -> None:
    long = list(range(40))
    nodes = build_tree([long, long[:30]], [[39], [29]])
    assert [(n.tokens, n.parent, n.reads) for n in nodes] == [(long[:30], -1, [(29, 1)]), (long[30:], 0, [(9, 0)])]
    short = build_tree([long[:9], long[:8]], [[8], [7]])
    assert [(n.tokens, n.parent) for n in short] == [(long[:8], -1), (long[:9], -1)], "8 tokens are not worth a node"


def test_the_tree_of_a_judge_prompt() -> None:
    head, prompts = list(range(100, 140)), [list(range(20)), list(range(20, 45))]
    sequences = [[*head, *p, 200 + c, 7, 8] for p in prompts for c in range(3)]
    nodes = build_tree(sequences, [[len(s) - 1] for s in sequences])
    assert [(n.parent, len(n.tokens)) for n in nodes] == [(-1, 40), (0, 20), (0, 25), *[(1, 3)] * 3, *[(2, 3)] * 3]


@pytest.mark.parametrize(
    ("sequences", "positions"), [([[1, 2], []], [[0], []]), ([[1, 2]], [[2]]), ([[1, 2]], [[-1]]), ([[1]], [[0], [0]])]
)
def test_wrong_input_is_named(sequences: list[list[int]], positions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"cannot give states at|longer than argument|shorter than"):
        build_tree(sequences, positions)


# --- nodes that may be kept ------------------------------------------------------------------------------------------


def test_the_head_is_a_node_of_its_own_even_alone() -> None:
    (alone,) = ([*range(10), 50],)
    nodes = build_tree([alone], [[10]], head=10)
    assert [(n.tokens, n.parent, n.key is not None) for n in nodes] == [(list(range(10)), -1, True), ([50], 0, False)]
    both = build_tree([alone, [*range(10), 51, 52]], [[10], [11]], head=10)
    assert both[0].key == nodes[0].key, "its key depends on its content alone"
    with pytest.raises(ValueError, match="do not share a head of 11 tokens"):
        build_tree([alone, [*range(10), 51, 52]], [[10], [11]], head=11)


def test_only_long_shared_unread_nodes_below_kept_ones_have_keys() -> None:
    head, prompt = list(range(10)), list(range(100, 200))
    sequences = [[*head, *prompt, c, c] for c in range(4)] + [[*head, *range(30), c] for c in range(4)]
    last = [[len(s) - 1] for s in sequences]
    kept = [len(n.tokens) for n in build_tree(sequences, last, head=10) if n.key is not None]
    assert kept == [10, 100], "30 shared tokens are not worth keeping"
    read = [[109, len(s) - 1] if len(s) > 100 else [len(s) - 1] for s in sequences]
    assert [len(n.tokens) for n in build_tree(sequences, read, head=10) if n.key is not None] == [10], "it is read"
    unkept = [[*range(30), *prompt, c] for c in range(3)] + [[*range(30), 99, c] for c in range(3)]
    assert not any(n.key for n in build_tree(unkept, [[len(s) - 1] for s in unkept])[1:]), "its parent is not kept"
