"""Score conversations with an exported folder as one stack loads it.

    python loaders.py STACK FOLDER DTYPE DEVICE OUTPUT < conversations.json

A program of its own that imports the stack and nothing of this package, so that it runs in any environment and what a
stack patches stays in this process. OUTPUT gets {"scores": B lists of K, "ids": B lists of token ids, or null}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

Messages = list[dict[str, str]]
Found = tuple[list[list[float]], list[list[int]] | None]


def transformers(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """The stock classes: all K outputs."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in talks]
    return _classify(folder, tokenizer, texts, dtype, device, add_special_tokens=False)


def trl(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """`reward_funcs="folder"`: `_calculate_rewards` of trl/trainer/grpo_trainer.py (1.16)."""
    from transformers import AutoTokenizer
    from trl import apply_chat_template

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [apply_chat_template({"messages": talk}, tokenizer)["text"] for talk in talks]
    return _classify(folder, tokenizer, texts, dtype, device, add_special_tokens=False, num_labels=1)


def verl(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """`RewardLoopWorker.compute_score_disrm` (0.9.1) up to its request; the stock classes stand in for its vLLM."""
    import numpy as np
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.utils import hf_tokenizer
    from verl.workers.config import HFModelConfig

    HFModelConfig(path=folder)  # what the reward model's server reads first
    worker = object.__new__(RewardLoopWorker)
    worker.reward_model_tokenizer = hf_tokenizer(folder, trust_remote_code=True)
    worker.input_tokenizer = SimpleNamespace(  # a policy whose tokens are characters
        decode=lambda ids: "".join(chr(i) for i in ids if i), eos_token="\0"
    )
    texts = []
    for *prompt, answer in talks:
        characters = torch.tensor([[ord(c) for c in answer["content"]] + [0]])
        data = DataProto.from_dict(
            {"responses": characters, "attention_mask": torch.ones_like(characters)},
            non_tensors={"raw_prompt": np.array([prompt, None], dtype=object)[:1]},
        )
        texts.append(asyncio.run(worker._preprocess_reward_inputs(data)))
    scores, ids = _classify(folder, worker.reward_model_tokenizer, texts, dtype, device, add_special_tokens=True)
    return [row[-1:] for row in scores], ids


def swift(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """`--reward_model folder --reward_model_plugin latent_rewards`: its loader, template and plugin (4.6)."""
    from swift.model import get_model_processor
    from swift.rewards.rm_plugin import DefaultRMPlugin
    from swift.template import get_template

    options = {"torch_dtype": getattr(torch, dtype), "device_map": device}
    model, processor = get_model_processor(folder, task_type="seq_cls", num_labels=1, **options)
    template = get_template(processor)
    template.set_mode("train")
    template.template_backend = "jinja"  # as the plugin of latent_rewards.serving.adapters.ms_swift does
    ids = [list(template.encode({"messages": talk})["input_ids"]) for talk in talks]
    scores = DefaultRMPlugin(model.eval(), template)([{"messages": talk} for talk in talks])
    return scores.float()[:, None].tolist(), ids


def vllm(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """`vllm serve folder --runner pooling` and its /classify, without activation."""
    from vllm import LLM, PoolingParams

    engine = LLM(model=folder, runner="pooling", dtype=dtype, enforce_eager=True)
    tokenizer = engine.get_tokenizer()
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    prompts: Any = [{"prompt_token_ids": row} for row in ids]
    answers = engine.classify(prompts, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    return [answer.outputs.probs for answer in answers], ids


def sglang(folder: str, talks: Sequence[Messages], dtype: str, device: str) -> Found:
    """`--is-embedding`, and the "embedding" that the native /classify answers for a rendered text."""
    from sglang import Engine
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    engine = Engine(model_path=folder, is_embedding=True, dtype=dtype)
    answers = engine.encode(texts)
    engine.shutdown()
    return [answer["embedding"] for answer in answers], None


def _classify(
    folder: str, tokenizer: Any, texts: list[str], dtype: str, device: str, *, add_special_tokens: bool, **options: int
) -> Found:
    from transformers import AutoModelForSequenceClassification

    kwargs: dict[str, Any] = {"torch_dtype": getattr(torch, dtype), **options}  # else the head is rounded to bfloat16
    model = AutoModelForSequenceClassification.from_pretrained(folder, **kwargs).to(device)
    tokenizer_options = {"padding": True, "padding_side": "right", "add_special_tokens": add_special_tokens}
    batch = tokenizer(texts, return_tensors="pt", **tokenizer_options).to(device)
    with torch.inference_mode():
        logits = model.eval()(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    kept = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return logits.float().tolist(), [ids[mask.bool()].tolist() for ids, mask in kept]


LOADERS: dict[str, Callable[[str, Sequence[Messages], str, str], Found]] = {
    "transformers": transformers, "TRL": trl, "verl": verl, "ms-swift": swift, "vLLM": vllm, "SGLang": sglang,
}  # fmt: skip

if __name__ == "__main__":
    stack, folder, dtype, device, output = sys.argv[1:]
    scores, ids = LOADERS[stack](folder, json.load(sys.stdin), dtype, device)
    Path(output).write_text(json.dumps({"scores": scores, "ids": ids}), encoding="utf-8")
