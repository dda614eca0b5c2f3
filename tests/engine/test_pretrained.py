from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_head import distance

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.engine.pretrained import load_causal_lm

VERIFIER = JudgePrompt.load("verifier")
TEXT: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=4096, initializer_range=0.25, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def saved(model: Any, folder: Path, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename(folder: Path, change: Callable[[str], str | None]) -> None:
    """Write the weights anew under other names; None drops one."""
    file = folder / "model.safetensors"
    tensors = {change(k): v for k, v in load_file(file).items()}
    save_file({k: v for k, v in tensors.items() if k is not None}, file, metadata={"format": "pt"})


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        _ = HFJudge(str(folder), device="cpu", dtype="float32").blocks
    assert str(folder) in str(caught.value)


OTHER_MODELS: list[tuple[str, str, str]] = [
    ("AutoModelForSequenceClassification", "llama", r"a reward model.*LlamaForSequence.*GRPOTrainer.*export"),
    ("AutoModelForSequenceClassification", "qwen2", r"a reward model.*Qwen2ForSequenceClassification"),  # tied
    ("AutoModelForTokenClassification", "llama", r"a token classifier.*LlamaForTokenClassification"),
    ("AutoModelForQuestionAnswering", "llama", r"question-answering.*LlamaForQuestionAnswering"),
    ("AutoModel", "llama", r"without an LM head, such as an embedding model.*LlamaModel"),
    ("AutoModel", "qwen2", r"without an LM head, such as an embedding model.*Qwen2Model"),  # tied
]  # fmt: skip


@pytest.mark.parametrize("kind, family, match", OTHER_MODELS)
def test_models_saved_with_another_head_or_none(
    make_model: Any, tokenizers: Any, tmp_path: Path, kind: str, family: str, match: str
) -> None:
    config = make_model(family, tokenizers["digits"]).config
    config.num_labels = 1
    folder = saved(getattr(transformers, kind).from_config(config), tmp_path, tokenizers["digits"])
    refused(folder, match)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_tell_where_the_config_does_not(make_model: Any, tokenizers: Any, tmp_path: Path, family: str) -> None:
    config = make_model(family, tokenizers["digits"]).config
    config.num_labels = 1
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    folder = saved(model, tmp_path, tokenizers["digits"])
    for architectures in (None, ["LlamaForCausalLM"]):
        edit_config(folder, architectures=architectures)
        refused(folder, r"a head of another kind \(score.weight\)")
    if family == "llama":
        rename(folder, lambda k: None if "score" in k else k)
        refused(folder, r"1 weights .* would be random \(lm_head.weight\); the model was saved without its LM head")


def test_an_embedding_model_that_calls_itself_a_causal_lm(folder: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    kinds = [
        {"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(("Transformer", "Pooling"))
    ]
    (copy / "modules.json").write_text(json.dumps(kinds))
    refused(copy, r"an embedding model of sentence-transformers")
    (copy / "modules.json").write_text(json.dumps(kinds[:1]))
    assert HFJudge(str(copy), device="cpu").n_layers == 3


def test_models_that_are_no_decoders(tokenizers: Any, tmp_path: Path) -> None:
    t5 = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=300)
    refused(
        saved(transformers.T5ForConditionalGeneration(t5), tmp_path / "t5", tokenizers["digits"]),
        r"is an encoder-decoder \(t5\)",
    )
    bart = transformers.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=300, max_position_embeddings=64,
    )  # fmt: skip
    refused(
        saved(transformers.BartForConditionalGeneration(bart), tmp_path / "bart", tokenizers["digits"]),
        r"is an encoder-decoder \(bart\)",
    )
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=300
    )
    refused(
        saved(transformers.BertForMaskedLM(bert), tmp_path / "bert", tokenizers["digits"]),
        r"a masked LM, which reads to the right too \(architectures: BertForMaskedLM\)",
    )
    vit = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=28, patch_size=14
    )
    folder = saved(transformers.ViTForImageClassification(vit), tmp_path / "vit", tokenizers["digits"])
    edit_config(folder, architectures=None)
    refused(folder, r"is a 'vit' model, for which transformers has no LM head")


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda k: None if "layers.1.mlp" in k else k,
            r"3 weights of LlamaForCausalLM .* random \(model.layers.1.mlp.down_proj.weight, .*; the files are inc",
        ),
        (lambda k: None if k == "model.norm.weight" else k, r"1 weights .* \(model.norm.weight\); the files are inc"),
        (lambda k: "module." + k, r"30 weights .* and 27 more\); the names in its files begin with 'module\.'"),
        (lambda k: "_orig_mod." + k, r"begin with '_orig_mod\.'.*unwrap_model"),
        (lambda k: "pretrained_model." + k, r"begin with 'pretrained_model\.'"),
        (lambda k: "student.net." + k, r"begin with 'student\.net\.'"),
        (lambda k: "base_model.model." + k, r"a PEFT model that was not merged.*merge_and_unload.*adapter="),
        (lambda k: k.replace("q_proj.", "q_proj.base_layer."), r"3 weights .*q_proj.*a PEFT model that was not merged"),
    ],
)  # fmt: skip
def test_weights_that_are_not_in_the_file(
    folder: str, tmp_path: Path, change: Callable[[str], str | None], match: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    rename(copy, change)
    refused(copy, match)


def test_weights_that_would_be_left_out(folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    for name, shape, match in (
        ("model.layers.0.self_attn.q_proj.bias", (32,), r"1 weights .* would be left out.*q_proj.bias"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (4, 32), r"an adapter was not merged"),
        ("classifier.weight", (1, 32), r"a head of another kind \(classifier.weight\)"),
    ):
        save_file(tensors | {name: torch.ones(shape)}, copy / "model.safetensors", metadata={"format": "pt"})
        refused(copy, match)
    harmless = ("v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.mlp.weight")
    more = {name: torch.ones(1, 4) for name in harmless}
    save_file(tensors | more, copy / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", logger="latent_rewards.engine.pretrained"):
        assert HFJudge(str(copy), device="cpu").blocks.plain_head
    assert "weights in its files are not the LM's" in caplog.text and "v_head.summary.weight" in caplog.text


def test_shapes_that_are_not_those_of_the_config(folder: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit_config(copy, vocab_size=333)
    shapes = r": \(\d+, 32\) in the file, \(333, 32\) by config.json" if transformers.__version__ >= "5" else ""
    refused(copy, r"the shapes of 2 weights .*lm_head.weight" + shapes)


def test_files_that_are_cut_short(folder: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-1000], whole[:50], b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"):
        file.write_bytes(content)
        refused(copy, r"model.safetensors cannot be read .*it is cut short or no weights; fetch it anew")


def test_two_loads_at_once_leave_the_tying_of_weights_on(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, of which the first to begin to build its model is the first to end: as two judges of a jury may."""
    base = transformers.PreTrainedModel
    tie, build = base.tie_weights, transformers.Qwen2ForCausalLM.__init__
    monkeypatch.setattr(base, "tie_weights", tie)  # put back, whatever happens
    building = threading.Event()

    def slowly(self: Any, config: Any) -> None:
        first = not building.is_set()
        building.set()
        time.sleep(0.1 if first else 0.4)
        build(self, config)

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "__init__", slowly)
    models: list[Any] = []
    threads = [threading.Thread(target=lambda: models.append(load_causal_lm(policy, {}))) for _ in range(2)]
    threads[0].start()
    building.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert base.tie_weights is tie
    assert [m.lm_head.weight is m.model.embed_tokens.weight for m in models] == [True, True]


def test_a_folder_without_tokenizer(folder: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"copy has no tokenizer that transformers can load .*save it beside the weights"
    ):
        _ = HFJudge(str(copy)).encoder


def test_a_teacher_of_a_distillation_is_whole_too(folder: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", minversion="1.16")
    from latent_rewards.distillation.teaching import load_teachers

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    rename(copy, lambda k: "module." + k)
    with pytest.raises(ValueError, match="weights of LlamaForCausalLM are not in its files"):
        load_teachers({"teacher": str(copy)})


def test_tied_heads_and_computed_buffers_are_not_missing(make_model: Any, tokenizers: Any, tmp_path: Path) -> None:
    for family in ("qwen2", "gemma2", "cohere"):
        folder = saved(make_model(family, tokenizers["digits"]), tmp_path / family, tokenizers["digits"])
        assert HFJudge(str(folder), device="cpu").blocks.plain_head


def test_overflow_in_float16_names_the_way_out(make_model: Any, tokenizers: Any, tmp_path: Path) -> None:
    model = make_model("llama", tokenizers["digits"])
    model.model.layers[0].mlp.down_proj.weight.data.mul_(1e6)
    folder = saved(model, tmp_path, tokenizers["digits"])
    with pytest.raises(ValueError, match=r"in float16; float16 ends at 65504.*dtype='bfloat16' or 'float32'"):
        _ = HFJudge(str(folder), device="cpu", dtype="float16").blocks
    assert HFJudge(str(folder), device="cpu", dtype="float32").n_layers == 3


# Models that see, too: their text is read.

EYE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)


def qwen_text(vocab: int) -> dict[str, Any]:
    return {**TEXT, "vocab_size": vocab, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


VLMS: dict[str, Callable[[int], Any]] = {
    "gemma3": lambda v: transformers.Gemma3Config(
        text_config={**TEXT, "vocab_size": v, "head_dim": 8, "sliding_window": 4096}, vision_config=EYE,
        mm_tokens_per_image=4, image_token_index=2, boi_token_index=3, eoi_token_index=4,
    ),
    "qwen2_5_vl": lambda v: transformers.Qwen2_5_VLConfig(
        text_config=qwen_text(v), image_token_id=v - 1, video_token_id=v - 2, vision_start_token_id=v - 3,
        vision_end_token_id=v - 4,
        vision_config=dict(
            depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[0]
        ),
    ),
    "mistral3": lambda v: transformers.Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, "vocab_size": v, "sliding_window": None},
        vision_config={"model_type": "pixtral", **EYE}, image_token_index=v - 1,
    ),
    "smolvlm": lambda v: transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": v}, vision_config=EYE, image_token_id=v - 1,
        tie_word_embeddings=False,
    ),
    "llava": lambda v: transformers.LlavaConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": v},
        vision_config={"model_type": "clip_vision_model", **EYE}, image_token_index=v - 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", VLMS)
def test_text_is_judged_by_the_folder_of_a_vlm(tokenizers: Any, tmp_path: Path, family: str) -> None:
    tokenizer = tokenizers["digits"]
    torch.manual_seed(2)
    model: Any = transformers.AutoModelForImageTextToText.from_config(VLMS[family](len(tokenizer))).eval()
    folder = saved(model, tmp_path, tokenizer)
    judge = HFJudge(str(folder), device="cpu", dtype="float32")
    assert type(judge.blocks.model) is type(model) and distance(judge, model) < 2e-5


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_the_template_of_a_vlm_may_lie_with_its_processor(
    folder: str, tmp_path: Path, tokenizers: Any, file: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "chat_template.jinja").unlink()
    assert HFJudge(str(copy)).encoder.tokenizer.chat_template is None
    (copy / file).write_text(json.dumps({"chat_template": tokenizers["digits"].chat_template}))
    row = VERIFIER.render({"prompt": "Name a prime.", "completion": "7"})
    assert HFJudge(str(copy)).encoder.encode([row]) == HFJudge(folder).encoder.encode([row])
