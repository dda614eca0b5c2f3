"""Students and teachers of the distillation recipe: loading, shrinking, perturbing, sampling, divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from latent_rewards.distillation.loss import distillation_loss
from latent_rewards.distillation.mixture import TeacherStates
from latent_rewards.distillation.options import LossOptions
from latent_rewards.distillation.teachers import backbone_states, head_of
from latent_rewards.engine.loading import freeze, resolve_model
from latent_rewards.engine.pretrained import load_causal_lm
from latent_rewards.files.types import JsonObject, Messages

if TYPE_CHECKING:
    from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase


def load_student(options: JsonObject) -> PreTrainedModel:
    """A student: `model`, and `layers` to keep only that many blocks of it, evenly spaced with first and last."""
    options = dict(options)
    layers = options.pop("layers", None)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(options.pop("model")), **options)
    return model if layers is None else keep_layers(model, layers)


def keep_layers(model: PreTrainedModel, n: int) -> PreTrainedModel:
    """The same model with n of its blocks.

    Raises:
        ValueError: n is below 2 or above what it has.
    """
    blocks = model.get_decoder().layers
    if not 2 <= n <= len(blocks):
        raise ValueError(f"layers must lie between 2 and {len(blocks)}, got {n}")
    kept = [round(i * (len(blocks) - 1) / (n - 1)) for i in range(n)]
    model.get_decoder().layers = torch.nn.ModuleList([blocks[i] for i in kept])
    for i, block in enumerate(model.get_decoder().layers):
        block.self_attn.layer_idx = i
    config = model.config.get_text_config()
    config.num_hidden_layers = n
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]
    return model


def load_teacher(options: JsonObject) -> PreTrainedModel:
    """A frozen teacher: `model`, `adapter` (PEFT), and `noise` for a worse copy of it.

    `noise` is the standard deviation of what is added to the matrices of the blocks, as a share of each one's own.
    """
    options = dict(options)
    noise, seed, adapter = options.pop("noise", 0.0), options.pop("noise_seed", 0), options.pop("adapter", None)
    model = load_causal_lm(resolve_model(options.pop("model")), options)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    if noise:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.get_decoder().layers.named_parameters():
                if p.dim() == 2 and not name.endswith("bias"):
                    p += (torch.randn(p.shape, generator=generator) * noise * p.float().std()).to(p.device, p.dtype)
    return freeze(model)


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int = 16,
    label: str = "responses",
) -> list[str]:
    """One response to each prompt (messages); the same seed gives the same responses. Temperature 0 is greedy."""
    training, out = model.training, []
    model.eval()
    sampling: JsonObject = {"do_sample": bool(temperature)}
    if temperature:
        sampling |= {"temperature": temperature, "top_p": 1.0, "top_k": 0}
    devices = [model.device] if model.device.type == "cuda" else []
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in tqdm(range(0, len(prompts), batch), desc=label, disable=None):
            given = tokenizer.apply_chat_template(
                list(prompts[start : start + batch]), add_generation_prompt=True, tokenize=True, padding=True,
                return_tensors="pt", return_dict=True,
            ).to(model.device)  # fmt: skip
            ids = model.generate(
                **given, **sampling, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id
            )
            out += tokenizer.batch_decode(ids[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    tokenizer.padding_side = side
    model.train(training)
    return [text.strip() for text in out]


class HeldOutText:
    """A teacher's responses to held-out prompts with its states at their tokens, to measure students against."""

    def __init__(self, model: PreTrainedModel, collator: DataCollator, dialogues: Sequence[Messages]) -> None:
        self.head, self.batches, self.states = head_of(model), [], []
        for messages in dialogues:
            batch = collator([{"messages": messages}])
            keep = batch["labels"][:, 1:] != -100
            self.batches.append((batch["input_ids"], batch["attention_mask"], keep))
            self.states.append(self._states(model, self.batches[-1]))

    @staticmethod
    @torch.no_grad()
    def _states(model: PreTrainedModel, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        ids, mask, keep = (x.to(model.device) for x in batch)
        return backbone_states(model, ids, mask)[:, :-1][keep]

    @torch.no_grad()
    def divergence(self, student: PreTrainedModel) -> list[float]:
        """Of each held-out prompt, KL(teacher || student) in nats per completion token; NaN for an empty completion."""
        training = student.training
        student.eval()
        out = []
        for batch, states in zip(self.batches, self.states, strict=True):
            own = self._states(student, batch)
            teacher = TeacherStates(states.to(own.device), self.head)
            parts = distillation_loss(own, head_of(student), [teacher], options=LossOptions(beta=0.0))
            out.append(float(parts.divergence) if parts.tokens > 0 else float("nan"))
        student.train(training)
        return out
