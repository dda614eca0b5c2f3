from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_head import distance, shake

from latent_rewards import HFJudge
from latent_rewards.export.checkpoints import Source

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


@pytest.fixture
def base(make_model: Any, tokenizers: Any, tmp_path: Path) -> Any:
    """save(family): folder of a base with its tokenizer."""

    def save(family: str = "llama") -> Path:
        folder = tmp_path / f"base-{family}"
        if folder.is_dir():
            return folder
        make_model(family, tokenizers["digits"]).save_pretrained(folder)
        tokenizers["digits"].save_pretrained(folder)
        return folder

    return save


def train(base: Path, folder: Path, config: Any, tokens: int = 0, template: str | None = OWN) -> Any:
    """Save an adapter as a trainer does, `tokens` added to vocabulary and embeddings; the model as it was trained."""
    from peft import get_peft_model

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens([f"<new {i}>" for i in range(tokens)])
        model.resize_token_embeddings(len(model.get_input_embeddings().weight) + tokens)
    tuned: Any = get_peft_model(model, config)
    shake(tuned, 0.05, "lora_B", "modules_to_save", "trainable_tokens_delta", "lora_embedding", "ia3")
    tuned.save_pretrained(folder)
    if template is not None:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return tuned.eval()


def made(kind: str, **options: Any) -> Any:
    """A PEFT config."""
    import peft

    return getattr(peft, kind)(**{"task_type": "CAUSAL_LM", **options})


def lora(**options: Any) -> Any:
    return made("LoraConfig", **{"r": 4, "target_modules": ["q_proj"], **options})


def judges(base: Path, adapter: Path) -> list[HFJudge]:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    return [HFJudge(str(base), adapter=str(adapter), **options), HFJudge(str(adapter), **options)]


SLOW = pytest.mark.slow
KINDS = [
    lambda: lora(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    lambda: made("IA3Config", target_modules=["k_proj"], feedforward_modules=[]),
    pytest.param(lambda: lora(use_dora=True), marks=SLOW),
    pytest.param(lambda: lora(modules_to_save=["lm_head"]), marks=SLOW),
    pytest.param(lambda: made("VeraConfig", target_modules=["q_proj"], r=4), marks=SLOW),
]


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_tied_weights_are_changed_where_the_adapter_changed_them(base: Any, tmp_path: Path, modules: Any) -> None:
    """qwen2 has its head tied to its embedding."""
    tuned = train(base("qwen2"), tmp_path / "adapter", lora(target_modules=modules))
    for judge in judges(base("qwen2"), tmp_path / "adapter"):
        assert distance(judge, tuned) < 2e-5


@pytest.mark.parametrize("config", KINDS, ids=["LoRA", "IA3", "DoRA", "head saved whole", "VeRA"])
def test_both_ways_give_the_trained_model(base: Any, tmp_path: Path, config: Any) -> None:
    tuned = train(base(), tmp_path / "adapter", config())
    for judge in judges(base(), tmp_path / "adapter"):
        assert distance(judge, tuned) < 2e-5


@pytest.mark.parametrize(
    "family, config",
    [
        pytest.param("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, marks=SLOW),
        ("qwen2", {"modules_to_save": ["embed_tokens"]}),  # tied: the file has the head's rows as they were
        pytest.param("qwen2", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, marks=SLOW),
        ("llama", {}),  # PEFT saves resized embeddings by itself
    ],
    ids=["both", "tied", "tied together", "by itself"],
)
def test_added_tokens_get_the_rows_they_were_trained_with(
    base: Any, tmp_path: Path, family: str, config: dict[str, Any]
) -> None:
    tuned = train(base(family), tmp_path / "adapter", lora(**config), tokens=3)
    for judge in judges(base(family), tmp_path / "adapter"):
        assert distance(judge, tuned) < 2e-5
        assert len(judge.encoder.tokenizer) == len(judge.blocks.head.weight), "the base's and three more"


def test_trained_token_indices_beyond_the_base(base: Any, tmp_path: Path) -> None:
    folder = base("qwen2")
    rows = len(transformers.AutoTokenizer.from_pretrained(folder))
    config = lora(trainable_token_indices=[rows, rows + 1, rows + 2])
    tuned = train(folder, tmp_path / "adapter", config, tokens=3)
    for judge in judges(folder, tmp_path / "adapter"):
        assert distance(judge, tuned) < 2e-5
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    before = len(load_file(file))
    drop(tmp_path / "adapter", "embed_tokens.weight", "base_layer.weight", "lm_head.weight")
    assert len(load_file(file)) < before, "no rows of the embedding but the three"
    for judge in judges(folder, tmp_path / "adapter"):
        assert distance(judge, tuned) < 2e-5


def drop(adapter: Path, *ends: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not any(e in k for e in ends)}, file)


def test_rows_that_the_adapter_does_not_hold(base: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(base(), adapter, lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), tokens=3)
    drop(adapter, "embed_tokens.base_layer", "lm_head.base_layer", "embed_tokens.weight", "lm_head.weight")
    for judge in judges(base(), adapter):
        with pytest.raises(
            ValueError, match=r"adapter was trained on \d+ tokens, .*base-llama has .*input embeddings of the 3"
        ):
            judge.blocks  # noqa: B018


def test_weights_that_do_not_fit(base: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(base(), adapter, lora())
    drop(adapter, "layers.1.")
    for judge in judges(base(), adapter):
        with pytest.raises(
            ValueError, match=r"does not fit .*base-llama: 2 of its weights are not in its file, 0 in it"
        ):
            judge.blocks  # noqa: B018
    train(base(), adapter, lora())
    file = adapter / "adapter_model.safetensors"
    save_file({k.replace("layers.1.", "layers.7."): v for k, v in load_file(file).items()}, file)
    with pytest.raises(ValueError, match="2 of its weights are not in its file, 2 in it have no place"):
        judges(base(), adapter)[0].blocks  # noqa: B018


def test_the_adapters_tokenizer_and_template_are_used(
    base: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = tmp_path / "adapter"
    train(base(), adapter, lora())
    for judge in judges(base(), adapter):
        caplog.clear()
        assert judge.encoder.tokenizer.chat_template == OWN
        assert f"the chat template of {adapter} is used, not that of {base()}" in caplog.text
    (adapter / "tokenizer_config.json").unlink()
    assert [j.encoder.tokenizer.chat_template for j in judges(base(), adapter)] == [OWN, OWN], "a template alone"
    (adapter / "chat_template.jinja").unlink()
    theirs = HFJudge(str(base())).encoder.tokenizer.chat_template
    assert [j.encoder.tokenizer.chat_template for j in judges(base(), adapter)] == [theirs, theirs]
    train(base(), adapter, lora())
    (adapter / "chat_template.jinja").unlink()
    assert [j.encoder.tokenizer.chat_template for j in judges(base(), adapter)] == [theirs, theirs]


def test_a_base_without_tokenizer(base: Any, tmp_path: Path, make_model: Any, tokenizers: Any) -> None:
    adapter, bare = tmp_path / "adapter", tmp_path / "bare"
    train(base(), adapter, lora())
    make_model("llama", tokenizers["digits"]).save_pretrained(bare)
    assert HFJudge(str(bare), adapter=str(adapter)).encoder.tokenizer.chat_template == OWN
    train(base(), tmp_path / "plain", lora(), template=None)
    with pytest.raises(OSError, match=r"neither .*bare nor its adapter .*plain has a tokenizer"):
        HFJudge(str(bare), adapter=str(tmp_path / "plain")).encoder  # noqa: B018


def test_a_tokenizer_that_is_not_the_bases_is_refused(base: Any, tmp_path: Path, tokenizers: Any) -> None:
    adapter = tmp_path / "adapter"
    train(base(), adapter, lora())
    tokenizers["metaspace"].save_pretrained(adapter)
    for judge in judges(base(), adapter):
        with pytest.raises(
            ValueError, match=r"tokenizer of the adapter .*adapter is not that of .*base-llama \('.*' is"
        ):
            judge.encoder  # noqa: B018


def test_adapters_that_are_refused(base: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    for config, match in (
        (made("PromptTuningConfig", num_virtual_tokens=4), "PROMPT_TUNING adapter puts learned"),
        (made("PrefixTuningConfig", num_virtual_tokens=4), "PREFIX_TUNING adapter puts learned"),
        (lora(alora_invocation_tokens=[5, 6]), "only after its invocation tokens"),
    ):
        shutil.rmtree(adapter, ignore_errors=True)
        train(base(), adapter, config)
        for judge in judges(base(), adapter):
            with pytest.raises(ValueError, match=match):
                judge.blocks  # noqa: B018
    shutil.rmtree(adapter)
    train(base(), adapter, lora())
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ValueError, match="an adapter for SEQ_CLS, no causal LM"):
        judges(base(), adapter)[0].blocks  # noqa: B018


def test_a_judge_with_an_adapter_is_not_its_bases_commit(base: Any, tmp_path: Path) -> None:
    from latent_rewards.engine.adapter_files import Source as From
    from latent_rewards.engine.loading import model_revision
    from latent_rewards.engine.peft_adapters import apply_adapter

    train(base(), tmp_path / "adapter", lora())
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base())
    model.config._commit_hash = "abc"
    assert model_revision(model, "org/base") == "abc"
    merged = apply_adapter(model, From("org/base", None, str(tmp_path / "adapter")))
    assert model_revision(merged, "org/base") not in ("abc", "None") and len(model_revision(merged, "org/base")) == 16


def test_names_that_leave_open_what_is_meant(base: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(base(), adapter, lora())
    with pytest.raises(ValueError, match="is an adapter itself"):
        HFJudge(str(adapter), adapter=str(adapter)).blocks  # noqa: B018
    both = Path(shutil.copytree(base(), tmp_path / "both"))
    shutil.copy(adapter / "adapter_config.json", both)
    with pytest.raises(ValueError, match="does not say whether one is merged into the other"):
        HFJudge(str(both)).blocks  # noqa: B018
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"does not name its base: HFJudge\(<its base>, adapter="):
        HFJudge(str(adapter)).blocks  # noqa: B018


def test_weights_of_an_adapter_judge_are_those_it_reads_with(base: Any, tmp_path: Path) -> None:
    train(base(), tmp_path / "adapter", lora())
    plain = Source(HFJudge(str(base()))).tensor("model.layers.0.self_attn.q_proj.weight")
    for judge in judges(base(), tmp_path / "adapter"):
        own = judge.blocks.layers[0].self_attn.q_proj.weight
        assert torch.equal(Source(judge).tensor("model.layers.0.self_attn.q_proj.weight"), own)
        assert not torch.equal(own, plain)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base())
    loaded = HFJudge(train(base(), tmp_path / "other", lora()), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="an adapter that is not merged"):
        Source(loaded)
