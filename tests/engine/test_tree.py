"""The packed prefix tree gives what the plain forward gives, over random trees, budgets, layers and architectures."""

from __future__ import annotations

import copy
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.data import open_ended
from latent_rewards.engine import schedule, tree_run
from latent_rewards.engine.blocks import Blocks, States, reference_states
from latent_rewards.engine.padded import read_states
from latent_rewards.engine.prefix_tree import build_tree
from latent_rewards.engine.tree import TreeForward
from latent_rewards.judge.labels import LabelTrie

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GPT: dict[str, Any] = {
    "vocab_size": VOCAB, "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
SHARING: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=400),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=8, sliding_window=400, attn_logit_softcapping=3.0, query_pre_attn_scalar=8
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **GPT, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512,
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT, n_embd=32, n_layer=4, n_head=4, n_positions=512),
}  # fmt: skip
LAYERS = (0, 1, 3, 4)
# Labels of one to three tokens that branch and nest: the contexts (), (5,), (7,), (7, 2).
TRIE = LabelTrie(6, ((3,), (5,), (5, 0), (7, 2, 1), (7, 2, 4), (7, 9)), (0, 1, 2, 3, 4, 5))


def make_blocks(config: Any) -> Blocks:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    return Blocks(model)


@pytest.fixture(scope="module")
def llama() -> Blocks:
    return make_blocks(SHARING["llama"]())


def random_text(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(n)]


def random_trees(seed: int, *, prompts: int = 3, completions: int = 3, longest: int = 30) -> list[list[int]]:
    """Head -> prompt -> completion, with repeats, empty completions and one text that is a prefix of the others."""
    rng = random.Random(seed)
    head = random_text(rng, rng.randrange(1, longest))
    texts = [head]
    for _ in range(prompts):
        prompt = [*head, *random_text(rng, rng.randrange(longest))]
        texts += [[*prompt, *random_text(rng, rng.randrange(longest))] for _ in range(completions)]
    texts += rng.choices(texts, k=2)
    rng.shuffle(texts)
    return texts


def with_labels(texts: Sequence[Sequence[int]], trie: LabelTrie = TRIE) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences and positions as the judge asks for them: every chain of the label trie after every text."""
    chains = trie.chains()
    sequences = [[*t, *chain] for t in texts for chain, _ in chains]
    positions = [[len(t) - 1 + len(trie.contexts[c]) for c in at] for t in texts for _, at in chains]
    return sequences, positions


def close(ours: States, plain: States, atol: float = 5e-5) -> None:
    assert (ours.final is None) == (plain.final is None) and ours.inner.keys() == plain.inner.keys()
    if ours.final is not None:
        torch.testing.assert_close(ours.final, plain.final, rtol=1e-5, atol=atol)
    for layer, rows in ours.inner.items():
        torch.testing.assert_close(rows, plain.inner[layer], rtol=1e-5, atol=atol)


def warm_up(forward: TreeForward, sequences: Sequence[Sequence[int]]) -> None:
    """Read other texts of these lengths, the first of which are compared with a plain forward."""
    others = [[(i + 1) % VOCAB for i in s] for s in sequences]
    forward.read(others, [[len(s) - 1] for s in others])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("family", sorted(SHARING))
@pytest.mark.parametrize("batch_tokens", [40, 100_000])
def test_families_share_and_equal_both_references(
    family: str, batch_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = make_blocks(SHARING[family]())
    forward = TreeForward(blocks, batch_tokens=batch_tokens, min_saving=4)
    assert forward.usable and not warnings_of(caplog)
    assert forward.few_rows == (family != "gpt2"), "GPT-2 wants a state of every token from its last block"
    sequences, positions = with_labels(random_trees(1, prompts=2, completions=2))
    ours = forward.read(sequences, positions, layers=LAYERS)
    assert forward.tokens_run < 0.5 * sum(map(len, sequences))
    close(ours, read_states(blocks, sequences, positions, layers=LAYERS))
    if batch_tokens > 1000:
        _, one_by_one = reference_states(blocks, sequences, positions, layers=LAYERS)
        inner = {layer: rows for layer, rows in ours.inner.items() if layer < blocks.n_layers}
        close(States(ours.final, inner), one_by_one)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    prompts=st.integers(0, 4),
    completions=st.integers(1, 4),
    batch_tokens=st.integers(5, 300),
    min_saving=st.integers(1, 40),
    layers=st.sets(st.integers(0, 4)),
    final=st.booleans(),
    cache_bytes=st.sampled_from([0, 3000, 1 << 20]),
)
def test_random_trees(
    llama: Blocks,
    seed: int,
    prompts: int,
    completions: int,
    batch_tokens: int,
    min_saving: int,
    layers: set[int],
    final: bool,
    cache_bytes: int,
) -> None:
    forward = TreeForward(llama, batch_tokens=batch_tokens, min_saving=min_saving, cache_bytes=cache_bytes)
    # The second call meets a cache left by other texts, less deep ones perhaps.
    for part in (seed + 1, seed):
        texts = random_trees(seed, prompts=prompts, completions=completions, longest=20)
        sequences, positions = with_labels(texts + random_trees(part, prompts=1, completions=1))
        wanted = sorted(layers) if part == seed else [1]
        ours = forward.read(sequences, positions, layers=wanted, final=final)
        close(ours, read_states(llama, sequences, positions, layers=wanted, final=final))
        assert 0 <= forward.cache.nbytes <= cache_bytes


def test_no_two_reads_of_one_text_and_reads_inside_shared_runs(llama: Blocks) -> None:
    text = random_text(random.Random(0), 60)
    sequences = [text, text, text[:40], [*text[:40], 1, 2, 3]]
    positions = [[59, 0], [17], [39, 20], []]
    forward = TreeForward(llama)
    for _ in range(2):
        close(forward.read(sequences, positions, layers=(2,)), read_states(llama, sequences, positions, layers=(2,)))


@pytest.mark.parametrize("deepest", range(5))
def test_no_deeper_block_runs_than_asked_for(llama: Blocks, deepest: int) -> None:
    sequences, positions = with_labels(random_trees(3))
    forward = TreeForward(llama)
    ran: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(llama.layers, 1)
    ]
    norms: list[int] = []
    handles.append(llama.norm.register_forward_pre_hook(lambda *_: norms.append(1)))
    try:
        ours = forward.read(sequences, positions, layers=(deepest,), final=False)
    finally:
        for handle in handles:
            handle.remove()
    assert ours.final is None and set(ours.inner) == {deepest}
    assert max(ran) == max(deepest, 1), "the embedding is caught in front of the first block, which then runs"
    assert len(norms) == 0
    close(ours, read_states(llama, sequences, positions, layers=(deepest,), final=False))


@pytest.mark.parametrize("deepest", [2, 4])
def test_the_deepest_block_runs_for_the_rows_that_are_read(llama: Blocks, deepest: int) -> None:
    rng = random.Random(2)
    head = random_text(rng, 70)
    sequences = [[*head, c, *random_text(rng, 20)] for c in range(3)]
    positions = [[len(s) - 1, 80] for s in sequences]
    forward, ran = TreeForward(llama), []
    warm_up(forward, sequences)
    handles = [
        block.mlp.register_forward_pre_hook(lambda _, args, i=i: ran.append((i, args[0].shape[1])))
        for i, block in enumerate(llama.layers, 1)
    ]
    try:
        ours = forward.read(sequences, positions, layers=(1, deepest), final=deepest == 4, head=70)
    finally:
        for handle in handles:
            handle.remove()
    assert [n for i, n in ran if i == deepest] == [6], "two rows of each text, none of the head"
    assert {n for i, n in ran if i < deepest} == {70, 63}, "head, and 3 x 21 tokens"
    close(ours, read_states(llama, sequences, positions, layers=(1, deepest), final=deepest == 4))


def test_a_second_call_runs_only_what_is_new(llama: Blocks) -> None:
    head = random_text(random.Random(3), 12)
    sequences, positions = with_labels([[*head, *t] for t in random_trees(4, completions=4)])
    forward = TreeForward(llama, min_saving=4)
    first = forward.read(sequences, positions, head=12)
    once, forward.tokens_run = forward.tokens_run, 0
    second = forward.read(sequences, positions, head=12)
    assert forward.tokens_run <= once - 12
    close(second, first)


def test_head_and_prompt_are_free_from_the_second_call_on(llama: Blocks) -> None:
    rng = random.Random(5)
    head, prompt = random_text(rng, 50), random_text(rng, 70)
    forward = TreeForward(llama)

    def run(prompt: list[int], tails: list[list[int]]) -> int:
        forward.tokens_run = 0
        sequences = [[*head, *prompt, *t] for t in tails]
        positions = [[len(s) - 1] for s in sequences]
        close(forward.read(sequences, positions, head=50), read_states(llama, sequences, positions))
        return forward.tokens_run

    tails = [[i, *random_text(rng, 9)] for i in range(4)]
    assert run(prompt, tails) == 50 + 70 + 40
    assert run(prompt, [[10 + i, *t[1:]] for i, t in enumerate(tails)]) == 40, "head and prompt were kept"
    other = [(prompt[0] + 1) % VOCAB, *random_text(rng, 29)]
    assert run(other, tails) == 30 + 40, "the head was kept"


def test_a_reading_does_not_depend_on_what_was_read_before(llama: Blocks) -> None:
    """Bit for bit, in bfloat16, where any other grouping would show."""
    blocks = Blocks(copy.deepcopy(llama.model).to(torch.bfloat16))
    rng = random.Random(9)
    head, prompts = random_text(rng, 40), [random_text(rng, n) for n in (20, 80, 130)]
    batches = [
        [[*head, *prompts[p], c, *random_text(rng, 5 + 3 * c)] for p in which for c in range(3)]
        for which in ((0, 1), (1, 2), (2,), (0, 1, 2))
    ]
    fresh = [TreeForward(blocks).read(b, [[len(s) - 1] for s in b], head=40).final for b in batches]
    used = TreeForward(blocks)
    for i in (0, 1, 2, 3, 3, 2, 1, 0, 2):
        again = used.read(batches[i], [[len(s) - 1] for s in batches[i]], head=40).final
        assert again is not None and fresh[i] is not None and torch.equal(again, fresh[i])


def test_prefixes_are_let_go_once_their_texts_are_read(llama: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    head = random_text(rng, 20)
    prompts = [[p, *random_text(rng, 79)] for p in range(8)]
    sequences = [[*head, *p, c, *random_text(rng, 30)] for p in prompts for c in range(3)]
    positions = [[len(s) - 1] for s in sequences]
    forward, held = TreeForward(llama, batch_tokens=100, cache_bytes=0), []
    pack = tree_run.TreeRun._pack
    monkeypatch.setattr(tree_run.TreeRun, "_pack", lambda run, step: (held.append(len(run._known)), pack(run, step))[1])
    close(forward.read(sequences, positions, head=20), read_states(llama, sequences, positions))
    assert len(held) == 1 + 8 + 8 and max(held) <= 3, "the head and the prompt at hand, not all prompts"


def test_a_shallow_cache_does_not_serve_a_deep_read(llama: Blocks) -> None:
    sequences, positions = with_labels(random_trees(6))
    forward = TreeForward(llama, min_saving=4)
    for layers, final in (((1,), False), ((3,), False), ((), True), ((1,), False)):
        ours = forward.read(sequences, positions, layers=layers, final=final)
        close(ours, read_states(llama, sequences, positions, layers=layers, final=final))


def test_without_a_cache_each_call_costs_the_same(llama: Blocks) -> None:
    sequences, positions = with_labels(random_trees(7))
    forward = TreeForward(llama, cache_bytes=0, min_saving=4)
    costs = []
    for _ in range(2):
        forward.tokens_run = 0
        forward.read(sequences, positions)
        costs.append(forward.tokens_run)
        assert forward.cache.nbytes == 0
    assert costs[0] == costs[1] < sum(map(len, sequences))


def test_sharing_can_be_switched_off(llama: Blocks, caplog: pytest.LogCaptureFixture) -> None:
    sequences, positions = with_labels(random_trees(8))
    forward = TreeForward(llama, share_prefixes=False)
    close(forward.read(sequences, positions), read_states(llama, sequences, positions))
    assert forward.tokens_run == sum(map(len, sequences)) and not warnings_of(caplog)


@pytest.mark.parametrize(
    "config",
    [
        transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=2),
        transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    ],
    ids=lambda c: c.model_type,
)
def test_models_that_cannot_share_fall_back_with_one_warning(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    blocks = make_blocks(config)
    forward = TreeForward(blocks)
    assert not forward.usable
    sequences, positions = with_labels(random_trees(12))
    for _ in range(2):
        _, one_by_one = reference_states(blocks, sequences, positions)
        close(forward.read(sequences, positions), one_by_one)
    ours = [w for w in warnings_of(caplog) if "reading without them" in w]
    assert len(ours) == 1 and type(blocks.model).__name__ in ours[0]


def test_a_wrong_result_switches_sharing_off(llama: Blocks, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    original = tree_run.TreeRun.states

    def wrong(run: tree_run.TreeRun) -> States:
        out = original(run)
        assert out.final is not None
        return States(out.final * 1.1, out.inner)

    monkeypatch.setattr(tree_run.TreeRun, "states", wrong)
    assert not TreeForward(llama).usable
    assert len(warnings_of(caplog)) == 1 and "relative difference" in warnings_of(caplog)[0]


@pytest.mark.parametrize("share", [True, False])
def test_out_of_memory_halves_the_batch_and_goes_on(llama: Blocks, caplog: Any, share: bool) -> None:
    sequences, positions = with_labels(random_trees(13))
    forward = TreeForward(llama, batch_tokens=256, share_prefixes=share)
    left = [1]

    def fail_once(*_: Any) -> None:
        if left:
            left.pop()
            raise torch.OutOfMemoryError("injected")

    handle = llama.layers[2].register_forward_pre_hook(fail_once)
    try:
        ours = forward.read(sequences, positions, layers=LAYERS)
    finally:
        handle.remove()
    assert not left and forward.batch_tokens == 128 and forward.usable == share
    assert len(warnings_of(caplog)) == 1 and "128 tokens" in warnings_of(caplog)[0]
    close(ours, read_states(llama, sequences, positions, layers=LAYERS))


def test_memory_that_never_suffices_is_an_error(llama: Blocks) -> None:
    forward = TreeForward(llama, batch_tokens=128)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    handle = llama.layers[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            forward.read([[1, 2, 3]], [[2]])
    finally:
        handle.remove()


def test_batches_pack_to_the_budget(llama: Blocks) -> None:
    sequences, positions = with_labels(random_trees(14, prompts=5, completions=5))
    forward = TreeForward(llama, batch_tokens=128, min_saving=4)
    warm_up(forward, sequences)
    forward.tokens_run = 0
    seen: list[int] = []
    handle = llama.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    try:
        forward.read(sequences, positions)
    finally:
        handle.remove()
    assert sum(seen) == forward.tokens_run and max(seen) <= 128
    assert len(seen) <= 2 * -(-forward.tokens_run // 128)


def test_no_batch_waits_for_another_where_subtrees_are_small() -> None:
    for prompts in (12, 11):  # whole subtrees fill a batch, or the last of one goes beyond its even share
        sequences = [[*[p] * 30, *([50 + i] * (3 + i))] for p in range(prompts) for i in range(4)]
        nodes = build_tree(sequences, [(len(s) - 1,) for s in sequences], keepable=[0] * len(sequences), min_saving=4)
        for workers in (1, 2):
            steps = schedule.steps(nodes, list(schedule.packs(nodes, 200, workers)))
            assert len(steps) >= 3 and not any(waits for *_, waits in steps)
            assert max(sum(len(nodes[i].tokens) for i in batch) for batch, *_ in steps) <= 200
            assert sorted(i for batch, *_ in steps for i in batch) == list(range(len(nodes)))
    narrow = schedule.steps(nodes, list(schedule.packs(nodes, 40)))
    assert any(waits for *_, waits in narrow), "a subtree larger than a batch is cut"


def test_keys_and_values_are_let_go_when_the_last_that_needs_them_has_run(
    llama: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, ancestors = [], tree_run.ancestors

    def seen(nodes: Any, i: int, known: dict[int, Any]) -> Any:
        held.append(len(known))
        return ancestors(nodes, i, known)

    monkeypatch.setattr(tree_run, "ancestors", seen)
    sequences, positions = with_labels(random_trees(2, prompts=30, completions=3))
    TreeForward(llama, batch_tokens=100, min_saving=4).read(sequences, positions)
    assert len(held) >= 30 and max(held) < 15


def test_the_models_own_attention_comes_back(llama: Blocks) -> None:
    before = llama.decoder.config._attn_implementation
    TreeForward(llama).read([[1, 2, 3]], [[2]])
    with pytest.raises(ValueError, match="cannot give states"):
        TreeForward(llama).read([[1, 2, 3]], [[3]])
    assert llama.decoder.config._attn_implementation == before


def test_two_judges_in_two_threads() -> None:
    works = [make_blocks(SHARING[name]()) for name in ("llama", "qwen3")]
    forwards = [TreeForward(b, min_saving=4, batch_tokens=100) for b in works]
    jobs = [[with_labels(random_trees(20 + 10 * i + j)) for j in range(6)] for i in range(2)]
    got: list[list[States]] = [[], []]
    start = threading.Barrier(2)

    def work(i: int) -> None:
        start.wait()
        for sequences, positions in jobs[i]:
            got[i].append(forwards[i].read(sequences, positions, layers=LAYERS))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(2):
        assert len(got[i]) == len(jobs[i])
        for states, (sequences, positions) in zip(got[i], jobs[i], strict=True):
            close(states, read_states(works[i], sequences, positions, layers=LAYERS))


def test_bfloat16_is_no_further_from_float32_than_the_plain_forward(embedded: HFJudge) -> None:
    prompt = JudgePrompt.load("weighted")
    rows = [{"prompt": r["prompt"], "completion": a} for r in open_ended()[:10] for a in r["responses"]]
    options: list[dict[str, Any]] = [
        {"dtype": "float32"}, {"dtype": "bfloat16", "share_prefixes": False}, {"dtype": "bfloat16"},
    ]  # fmt: skip
    exact, plain, tree = (
        HFJudge("embedded", **o).read([Request(prompt, rows, Need(labels=True))])[0].label_logprobs for o in options
    )
    assert exact is not None and plain is not None and tree is not None
    assert (tree - exact).square().mean().sqrt() <= 1.25 * (plain - exact).square().mean().sqrt()
    assert (tree - exact).abs().max() <= 2 * (plain - exact).abs().max()


def compile_with(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **kw: original(self, backend=backend, **kw))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compiled_blocks_equal_eager_ones_without_recompiling(
    family: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(monkeypatch, backend)
    blocks, plain = make_blocks(SHARING[family]()), make_blocks(SHARING[family]())
    forward = TreeForward(blocks, compile=True, min_saving=4)
    needs: list[dict[str, Any]] = [{}, {"layers": (2,), "final": False}, {"layers": (0, 3)}]
    counted = torch._dynamo.utils.counters["stats"]
    graphs = []
    for seed in range(5):
        sequences, positions = with_labels(random_trees(30 + seed, prompts=2, completions=2 + seed))
        for need in needs:
            ours = forward.read(sequences, positions, **need)
            close(ours, read_states(plain, sequences, positions, **need))
        graphs.append(counted["unique_graphs"])
    assert graphs[0] > 0, "nothing was compiled"
    assert graphs[1:] == [graphs[1]] * 4, "batches of other lengths compiled again"
    assert graphs[-1] <= 8, "blocks of one shape share their code"
