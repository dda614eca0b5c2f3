"""The pool of kept prefixes: content, order of eviction, bytes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards.engine.prefix_cache import KeysValues, PrefixCache


def kv(n: int, layers: int = 2, seed: int = 0) -> KeysValues:
    """Keys and values of n tokens, 16 bytes a token and layer."""
    rng = torch.Generator().manual_seed(seed)
    return [tuple(torch.rand(2, n, 1, generator=rng) for _ in "kv") for _ in range(layers)]  # type: ignore[misc]


def same(a: KeysValues | None, b: KeysValues) -> bool:
    return a is not None and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_least_recently_used_go_first() -> None:
    cache = PrefixCache(9 * 32)
    for key, n in ((b"head", 2), (b"a", 3), (b"b", 3)):
        cache.put(key, kv(n))
    assert cache.get(b"head", 2) is not None and cache.get(b"a", 2) is not None
    cache.put(b"c", kv(3))
    assert cache.get(b"b", 1) is None, "the least recently used"
    assert all(cache.get(key, 2) is not None for key in (b"head", b"a", b"c"))
    assert cache.nbytes == 8 * 32


def test_a_shallow_entry_does_not_serve_a_deep_need() -> None:
    cache = PrefixCache(1 << 20)
    cache.put(b"x", kv(3, layers=1))
    assert same(cache.get(b"x", 1), kv(3, layers=1)) and cache.get(b"x", 2) is None
    cache.put(b"x", kv(3, layers=2))
    assert same(cache.get(b"x", 2), kv(3, layers=2)) and cache.nbytes == 3 * 32
    cache.put(b"y", kv(4, layers=1))
    assert cache.get(b"y", 2) is None and same(cache.get(b"y", 1), kv(4, layers=1))
    cache.clear()
    assert cache.get(b"x", 1) is None and cache.nbytes == 0


def test_what_was_given_out_does_not_change_when_its_place_is_taken() -> None:
    cache = PrefixCache(4 * 32)
    cache.put(b"x", kv(3, seed=1))
    given = cache.get(b"x", 2)
    cache.put(b"y", kv(4, seed=2))
    assert cache.get(b"x", 2) is None and same(given, kv(3, seed=1)) and same(cache.get(b"y", 2), kv(4, seed=2))


def test_what_does_not_fit_is_not_kept_and_drives_nothing_out() -> None:
    cache = PrefixCache(4 * 32)
    cache.put(b"x", kv(2))
    cache.put(b"y", kv(5))
    assert cache.get(b"y", 2) is None and cache.get(b"x", 2) is not None
    none = PrefixCache(0)
    none.put(b"x", kv(2))
    assert none.get(b"x", 1) is None and none.nbytes == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.integers(1, 5), st.integers(1, 3))), st.integers(0, 20))
def test_bytes_and_content_hold_under_any_use(calls: list[tuple[bytes, int, int]], limit: int) -> None:
    cache = PrefixCache(limit * 16)
    latest: dict[bytes, KeysValues] = {}
    for i, (key, n, layers) in enumerate(calls):
        latest[key] = kv(n, layers, seed=i)
        cache.put(key, latest[key])
        deepest = max(c[2] for c in calls[: i + 1])
        assert (cache.get(key, layers) is not None) == (n * deepest <= limit)
        assert 0 <= cache.nbytes <= cache.max_bytes
        for other, wanted in latest.items():
            found = cache.get(other, len(wanted))
            assert found is None or same(found, wanted)
