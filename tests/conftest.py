"""Tiny random judges of several families, tokenizers of several kinds, and the embedded judge."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from latent_rewards import HFJudge
from latent_rewards import env as env_module
from latent_rewards.rewards import base as rewards_module

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<turn>{{ m['role'] }}\n{{ m['content'] | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
ADDED = ["<think>", "</think>", "<tool_call>"]
_CORPUS = [
    "the quick brown fox jumps over the lazy dog and 10 more dogs came at 10 past 10",
    "How good is the reply, from 0 to 10? Answer with the bare whole number: 10 10 10 10",
    "Yes No yes no YES NO A prime number is 2 3 5 7. ### Task\nReply 1 2 3 4 5 6 7 8 9 10",
] * 20

Builder = Callable[[int], transformers.PretrainedConfig]


def _sizes(vocab: int, **extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "initializer_range": 0.25, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **extra,
    }  # fmt: skip


FAMILIES: dict[str, Builder] = {
    "llama": lambda v: transformers.LlamaConfig(**_sizes(v)),
    "qwen2": lambda v: transformers.Qwen2Config(**_sizes(v, tie_word_embeddings=True)),
    "qwen3": lambda v: transformers.Qwen3Config(**_sizes(v, head_dim=8, num_hidden_layers=4)),
    "phi3": lambda v: transformers.Phi3Config(**_sizes(v)),
    "mistral": lambda v: transformers.MistralConfig(**_sizes(v, sliding_window=24)),
    "gemma2": lambda v: transformers.Gemma2Config(
        **_sizes(v, head_dim=8, sliding_window=24, final_logit_softcapping=5.0, attn_logit_softcapping=10.0),
        query_pre_attn_scalar=8,
    ),
    "granite": lambda v: transformers.GraniteConfig(
        **_sizes(v, logits_scaling=3.0, residual_multiplier=0.7, embedding_multiplier=2.0, attention_multiplier=0.3)
    ),
    "cohere": lambda v: transformers.CohereConfig(**_sizes(v, logit_scale=0.25)),
}


def _byte_level(*, digits: bool, chat: bool) -> Any:
    tok = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|\p{N}+|[^\n\p{N}]+"), "isolated"),
            *steps,
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if chat else ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    if not chat:
        bos = tok.token_to_id("<s>")
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    names = (
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        if chat
        else {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, model_input_names=["input_ids", "attention_mask"], **names
    )
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.add_tokens(ADDED)
    if chat:
        fast.chat_template = CHATML
    return fast


def _metaspace() -> Any:
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tok.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", "<pad>", "<turn>", "</turn>"]
    printable = [chr(i) for i in range(33, 127)] + ["\n", "\ufffd"]
    tok.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=printable)
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    fast.add_tokens(ADDED)
    fast.chat_template = NO_SYSTEM
    return fast


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Any]:
    """digits: splits numbers; numbers: "10" is one token; plain: BOS, no chat template; metaspace: no system turn."""
    return {
        "digits": _byte_level(digits=True, chat=True),
        "numbers": _byte_level(digits=False, chat=True),
        "plain": _byte_level(digits=True, chat=False),
        "metaspace": _metaspace(),
    }


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(family, tokenizer, **config): a fresh random model in float32."""

    def make(family: str, tokenizer: Any, **changes: Any) -> Any:
        config = FAMILIES[family](len(tokenizer))
        for key, value in changes.items():
            setattr(config, key, value)
        torch.manual_seed(7)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    return make


@pytest.fixture(scope="session")
def make_judge(tokenizers: dict[str, Any], make_model: Callable[..., Any]) -> Callable[..., HFJudge]:
    """make_judge(family, tokenizer name, **options): a judge around a fresh random model."""

    def make(family: str = "llama", tokenizer: str = "digits", **options: Any) -> HFJudge:
        return HFJudge(make_model(family, tokenizers[tokenizer]), tokenizer=tokenizers[tokenizer], **options)

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: Any, tokenizers: dict[str, Any], make_model: Callable[..., Any]) -> str:
    """Folder of a tiny random Llama-shaped judge, as `save_pretrained` leaves it."""
    path = tmp_path_factory.mktemp("judge") / "tiny-judge"
    make_model("llama", tokenizers["digits"]).save_pretrained(path)
    tokenizers["digits"].save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: Any, tokenizers: dict[str, Any], make_model: Callable[..., Any]) -> str:
    """Folder of a tiny random policy that knows its end and padding tokens."""
    path: Path = tmp_path_factory.mktemp("policy") / "tiny-policy"
    tok = tokenizers["digits"]
    model = make_model("qwen2", tok, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    model.save_pretrained(path)
    tok.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def embedded() -> HFJudge:
    """The embedded judge in float32."""
    return HFJudge("embedded", dtype="float32", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def fresh_names() -> None:
    """Each test file starts with all reward names free, whatever earlier files keep alive."""
    rewards_module._live.clear()


_tie_weights = transformers.PreTrainedModel.tie_weights


@pytest.fixture(autouse=True)
def tying() -> Any:
    """No test leaves the tying of weights off, as loads in two threads may (`compat.ONE_LOAD`)."""
    yield
    left, transformers.PreTrainedModel.tie_weights = transformers.PreTrainedModel.tie_weights, _tie_weights
    assert left is _tie_weights, "two models were loaded at once in this test or just before it"


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No LATENT_REWARDS_* variables but the cache, and nothing remembered by `latent_rewards.env`."""
    caches = (env_module._config, env_module._judge, env_module._reward, env_module._served)
    for key in list(os.environ):
        if key.startswith("LATENT_REWARDS_") and key != "LATENT_REWARDS_CACHE":
            monkeypatch.delenv(key)
    for cache in caches:
        cache.cache_clear()
    yield monkeypatch
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread while a test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def head_states() -> Iterator[list[tuple[tuple[int, ...], bool]]]:
    """Of all that goes through an LM head of a tiny model in this process: its shape, and whether it is contiguous."""
    seen: list[tuple[tuple[int, ...], bool]] = []

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features > 200:  # tiny models are narrower elsewhere
            seen.append((tuple(args[0].shape), args[0].is_contiguous()))

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    yield seen
    handle.remove()
