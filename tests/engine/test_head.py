from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.engine import head as head_module
from latent_rewards.engine.blocks import Blocks
from latent_rewards.engine.head import ROWS, same_logits
from latent_rewards.engine.workers import replica

VERIFIER = JudgePrompt.load("verifier")
TEXTS = [
    {"prompt": "Name a prime.", "completion": "7"},
    {"prompt": "Name a prime.", "completion": "Nine, and so is ten."},
    {"prompt": "Say it in French", "completion": "Bonjour"},
]
SIZES: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=4096, initializer_range=0.25, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def furthest(model: Any, tokenizer: Any) -> tuple[float, HFJudge]:
    """A judge of the model, and how far it is from the model itself."""
    judge = HFJudge(model, tokenizer=tokenizer)
    return distance(judge, model), judge


def distance(judge: HFJudge, model: Any) -> float:
    """Largest difference between label log-probabilities of a judge and of a model's plain forward, in nats."""
    got = judge.read([Request(VERIFIER, TEXTS, Need(labels=True))])[0].label_logprobs
    trie = judge.trie(VERIFIER)
    want = []
    for e in judge.encoder.encode([VERIFIER.render(row) for row in TEXTS]):
        with torch.no_grad():
            steps = [
                model(input_ids=torch.tensor([[*e.ids, *context]]), use_cache=False).logits[:, -1].float()
                for context in trie.contexts
            ]
        logits = [z[:, list(ids)] for z, ids in zip(steps, trie.children, strict=True)]
        want.append(trie.log_probs(logits, [torch.logsumexp(z, -1) for z in steps])[0])
    return (got - torch.stack(want)).abs().max().item()


def shake(model: Any, size: float, *names: str) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(n in name for n in names):
                p.add_(torch.randn_like(p) * size)


ADAPTERS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "LoRA on the head, small": ({"target_modules": ["q_proj", "lm_head"]}, 1e-3, False),
    "LoRA on the head": ({"target_modules": ["q_proj", "lm_head"]}, 0.05, False),
    "DoRA on the head": ({"target_modules": ["q_proj", "lm_head"], "use_dora": True}, 1e-3, False),
    "the head saved whole": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 1e-3, False),
    "trained tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 9]}}, 0.05, False),
    "LoRA": ({"target_modules": ["q_proj"]}, 0.05, True),
    "DoRA": ({"target_modules": ["q_proj", "up_proj"], "use_dora": True}, 0.05, True),
}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_of_a_loaded_judge(make_model: Any, tokenizers: Any, kind: str, merged: bool) -> None:
    import peft

    options, size, rows = ADAPTERS[kind]
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options)
    model: Any = peft.get_peft_model(make_model("llama", tokenizers["digits"]), config)
    shake(model, size, "lora_B", "modules_to_save", "trainable_tokens_delta")
    model = model.merge_and_unload() if merged else model
    far, judge = furthest(model.eval(), tokenizers["digits"])
    assert far < 2e-5 and judge.blocks.plain_head == (rows or merged)
    assert judge.blocks.head_kind == ROWS if rows or merged else "peft" in judge.blocks.head_kind


@pytest.mark.parametrize("merged", [False, True])
def test_ia3(make_model: Any, tokenizers: Any, merged: bool) -> None:
    import peft

    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model: Any = peft.get_peft_model(make_model("llama", tokenizers["digits"]), config)
    shake(model, 0.3, "ia3")
    far, judge = furthest((model.merge_and_unload() if merged else model).eval(), tokenizers["digits"])
    assert far < 2e-5 and judge.blocks.plain_head


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_adapters_that_put_tokens_before_the_text_are_refused(make_model: Any, tokenizers: Any, kind: str) -> None:
    import peft

    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(make_model("llama", tokenizers["digits"]), config)
    with pytest.raises(ValueError, match=r"adapter 'default'.*learned tokens before the text.*LoRA, DoRA, IA3"):
        HFJudge(model, tokenizer=tokenizers["digits"]).blocks  # noqa: B018


class Wrapped(nn.Module):
    """Like a quantised layer: it computes, and has no `weight`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


FAMILIES = {
    "mixtral": lambda v: transformers.MixtralConfig(vocab_size=v, num_local_experts=2, sliding_window=None, **SIZES),
    "qwen3_moe": lambda v: transformers.Qwen3MoeConfig(
        vocab_size=v, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=24, **SIZES
    ),
    "recurrent_gemma": lambda v: transformers.RecurrentGemmaConfig(
        vocab_size=v, logits_soft_cap=3.0, attention_window_size=512, lru_width=32,
        block_types=["attention", "recurrent"],
        **{k: x for k, x in SIZES.items() if k not in ("initializer_range", "max_position_embeddings")},
    ),
    "falcon_h1": lambda v: transformers.FalconH1Config(
        vocab_size=v, lm_head_multiplier=0.3, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1,
        mamba_d_state=8, mamba_chunk_size=16, **SIZES,
    ),
    "gemma2": lambda v: transformers.Gemma2Config(
        vocab_size=v, final_logit_softcapping=2.0, query_pre_attn_scalar=8, **SIZES
    ),
    "granite": lambda v: transformers.GraniteConfig(
        vocab_size=v, logits_scaling=7.3, **{k: x for k, x in SIZES.items() if k != "head_dim"}
    ),
    "a stray setting": lambda v: transformers.LlamaConfig(vocab_size=v, logits_scaling=4.0, **SIZES),
}  # fmt: skip


def build(family: str, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family](len(tokenizer)), dtype=dtype)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_families_do_to_their_logits(tokenizers: Any, family: str) -> None:
    far, judge = furthest(build(family, tokenizers["digits"]), tokenizers["digits"])
    assert far < 2e-5
    assert judge.blocks.plain_head == (family in {"mixtral", "qwen3_moe", "gemma2", "granite"})


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "granite"])
def test_a_head_without_weight_is_used_as_it_is(tokenizers: Any, family: str) -> None:
    model = build(family, tokenizers["digits"])
    model.set_output_embeddings(Wrapped(model.get_output_embeddings()))
    far, judge = furthest(model, tokenizers["digits"])
    assert far < 2e-5 and judge.blocks.head_kind.startswith("the model's own: its LM head is a test_head.Wrapped")


def test_changes_too_small_to_be_seen_in_the_logits(make_model: Any, tokenizers: Any) -> None:
    def hooked(model: Any) -> None:
        model.lm_head.register_forward_hook(lambda m, a, out: out * 1.002)

    def hooked_outside(model: Any) -> None:
        model.register_forward_hook(lambda m, a, out: type(out)(**{**out, "logits": out.logits * 1.002}))

    def replaced(model: Any) -> None:
        inner = model.lm_head.forward
        model.lm_head.forward = lambda x: inner(x) * 1.002

    def parametrised(model: Any) -> None:
        scale = nn.Module()
        scale.forward = lambda w: w * 1.002  # type: ignore[method-assign]
        nn.utils.parametrize.register_parametrization(model.lm_head, "weight", scale, unsafe=True)

    for change in (hooked, hooked_outside, replaced, parametrised):
        model = make_model("llama", tokenizers["digits"]).eval()
        change(model)
        far, judge = furthest(model, tokenizers["digits"])
        assert far < 2e-5 and not judge.blocks.plain_head, change.__name__


def test_a_cap_that_small_logits_do_not_show(tokenizers: Any) -> None:
    model = build("recurrent_gemma", tokenizers["digits"])
    model.config.logits_soft_cap = 3e3
    blocks = Blocks(model)
    blocks.self_check()
    loud = 1e3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = 3e3 * torch.tanh(model.lm_head(loud) / 3e3)
        torch.testing.assert_close(blocks.head_logits(loud), logits)
        torch.testing.assert_close(blocks.log_normaliser(loud), torch.logsumexp(logits, -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_hides_no_token_that_is_masked(dtype: torch.dtype) -> None:
    """Rows are compared at a sample of tokens; one between them, or a width that is cut, must show all the same."""

    class Masks(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = self.change(out.logits)
            return out

    def masked(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([40_001]), torch.finfo(logits.dtype).min)

    def cut(logits: torch.Tensor) -> torch.Tensor:
        return logits[..., :-64]

    torch.manual_seed(5)
    model = Masks(transformers.LlamaConfig(vocab_size=80_000, **SIZES)).to(dtype).eval().requires_grad_(False)
    assert 40_001 not in head_module._some_of(80_000)
    for change, plain in ((lambda logits: logits, True), (masked, False), (cut, False)):
        model.change = change
        blocks, states = Blocks(model), torch.randn(3, 32).to(dtype)
        blocks.self_check()
        assert blocks.plain_head is plain
        want = torch.logsumexp(change(model.lm_head(states)).float(), -1)
        torch.testing.assert_close(blocks.log_normaliser(states), want, atol=1e-4 if plain else 1e-6, rtol=1e-3)


def test_hooks_of_the_decoder_act_once(make_model: Any, tokenizers: Any) -> None:
    model = make_model("llama", tokenizers["digits"]).eval()
    model.model.register_forward_hook(lambda m, a, out: type(out)(last_hidden_state=out.last_hidden_state * 2))
    model.lm_head = Wrapped(model.lm_head)
    assert furthest(model, tokenizers["digits"])[0] < 2e-5
    assert len(model.model._forward_hooks) == 1 and "forward" not in vars(model.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_type_keeps_the_rows_and_hides_nothing_systematic(tokenizers: Any, dtype: torch.dtype) -> None:
    for family in ("mixtral", "gemma2", "granite"):
        blocks = Blocks(build(family, tokenizers["digits"], dtype))
        blocks.self_check()
        assert blocks.head_kind == ROWS, family
    torch.manual_seed(0)
    exact, unit = torch.randn(4, 5000) * 5, torch.finfo(dtype).eps / 2
    assert same_logits(exact, exact.to(dtype), unit)
    for factor in (1 + unit, 1 - unit):
        assert not same_logits(exact, (exact * factor).to(dtype), unit), "half of the last digit, all one way"
    bent = exact.clone()
    bent[1, 7] += 40 * unit * exact.abs().max()
    assert not same_logits(exact, bent.to(dtype), unit) and not same_logits(exact, exact[:, :-1], unit)


def test_float32_is_compared_to_a_ten_thousandth() -> None:
    torch.manual_seed(0)
    exact, unit = torch.randn(4, 500) * 5, torch.finfo(torch.float32).eps / 2
    assert same_logits(exact, exact + 1e-5 * torch.randn(4, 500).clamp(-1, 1), unit)
    assert not same_logits(exact, exact + 2e-4 * torch.randn(4, 500), unit)


def test_the_models_own_head_runs_on_few_positions_at_once(
    make_model: Any, tokenizers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", tokenizers["digits"]).eval().requires_grad_(False)
    blocks, states = Blocks(model), torch.randn(23, 32)
    want = blocks.head_logits(states)
    seen: list[int] = []
    model.lm_head = Wrapped(model.lm_head)
    model.lm_head.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    blocks = Blocks(model)
    blocks.self_check()
    monkeypatch.setattr(head_module, "_MOST_LOGITS", 5 * len(tokenizers["digits"]))
    seen.clear()
    torch.testing.assert_close(blocks.head_logits(states, [3, 8]), want[:, [3, 8]])
    torch.testing.assert_close(blocks.log_normaliser(states), torch.logsumexp(want, -1))
    assert max(seen) == 5 and sum(seen) == 46
    assert blocks.head_logits(states[:0], [3, 8]).shape == (0, 2) and blocks.log_normaliser(states[:0]).shape == (0,)


def test_a_replica_reads_the_head_in_the_same_way(make_model: Any, tokenizers: Any) -> None:
    model = make_model("llama", tokenizers["digits"]).eval().requires_grad_(False)
    blocks = Blocks(model)
    blocks.head.why_own = "a reason"
    assert replica(blocks).head_kind == blocks.head_kind == "the model's own: a reason"


def test_logits_that_the_states_do_not_give_are_refused(make_model: Any, tokenizers: Any) -> None:
    model = make_model("llama", tokenizers["digits"]).eval()
    inner = model.forward

    def forward(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = inner(input_ids=input_ids, **kwargs)
        out.logits = out.logits + input_ids[..., None]  # as a copy head does
        return out

    model.forward = forward
    model.lm_head = Wrapped(model.lm_head)
    with pytest.raises(ValueError, match="its logits do not follow from the decoder's last states"):
        HFJudge(model, tokenizer=tokenizers["digits"]).blocks  # noqa: B018


def test_loaded_models_without_an_lm_head_are_refused(make_model: Any, tokenizers: Any) -> None:
    import peft

    model = make_model("qwen2", tokenizers["digits"])
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    reward, wrapped = (transformers.AutoModelForSequenceClassification.from_config(config) for _ in range(2))
    t5 = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=300)
    for given, match in (
        (reward, "a Qwen2ForSequenceClassification is a reward model.*GRPOTrainer"),
        (peft.get_peft_model(wrapped, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])), "for SEQ_CLS"),
        (transformers.AutoModelForTokenClassification.from_config(config), "is a token classifier"),
        (model.model, "a Qwen2Model is a model without an LM head"),
        (transformers.T5ForConditionalGeneration(t5), "T5ForConditionalGeneration is an encoder-decoder"),
    ):
        with pytest.raises(ValueError, match=match):
            HFJudge(given, tokenizer=tokenizers["digits"]).blocks  # noqa: B018
