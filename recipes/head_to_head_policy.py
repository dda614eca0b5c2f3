"""The policy of the head-to-head: how it is taught its faults, sampled, and trained with GRPO against one reward."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer

from latent_rewards.data.facts import Fact, facts, is_right
from latent_rewards.engine.loading import resolve_model
from latent_rewards.files.types import JsonObject

if TYPE_CHECKING:
    from recipes.head_to_head import HeadToHead

FORMS = ("right", "wrong", "evasion")


def messages(fact: Fact) -> list[dict[str, str]]:
    """The prompt."""
    return [{"role": "user", "content": fact["question"]}]


def form_of(text: str, fact: Fact) -> str:
    """One of `FORMS`: the right answer; a statement that begins as one would, or a bare word or two; anything else."""
    if is_right(text, fact):
        return "right"
    stem = fact["right"][: fact["right"].rindex(fact["answer"])].strip(" '\"")
    return "wrong" if text.startswith(stem) or len(text.split()) <= 2 else "evasion"


def teach(folder: Path, args: HeadToHead) -> Path:
    """The start of all runs, saved, and kept where it is: the policy after supervised steps on all questions.

    First on the right answers alone (`known` epochs), so that it can be right; then (`mixed` epochs) on answers drawn
    by `shares`, where "fact" is another answer of the same kind, drawn anew each time, so that it fails as policies do.
    """
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    rng, source = random.Random(0), resolve_model(args.policy)
    tokenizer = AutoTokenizer.from_pretrained(source)
    lora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16), lora)
    weights = [p for p in model.parameters() if p.requires_grad]
    for p in weights:
        p.data = p.data.float()
    todo = list(_lessons(args, rng))
    optimizer = torch.optim.AdamW(weights, lr=args.taught_lr, weight_decay=0.0)
    steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.taught_lr, total_steps=len(todo), pct_start=0.1)
    for i, lesson in enumerate(todo):
        batch, labels = _labelled(tokenizer, lesson)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch, logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps.step()
        if i % 10 == 0:
            print(f"taught {i} of {len(todo)}: loss {loss.item():.3f}", flush=True)
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _lessons(args: HeadToHead, rng: random.Random) -> Iterator[list[tuple[Fact, str]]]:
    """Batches of 32 questions with an answer to each."""
    rows = facts()
    pools = {kind: [r for r in rows if r["kind"] == kind] for kind in {r["kind"] for r in rows}}
    names, weights = list(args.shares), list(args.shares.values())
    for epoch in range(args.known + args.mixed):
        drawn: list[tuple[Fact, str]] = []
        for fact in rng.sample(rows, len(rows)):
            name = "right" if epoch < args.known else rng.choices(names, weights)[0]
            drawn.append((fact, answer_of(name, fact, pools[fact["kind"]], rng)))
        drawn.sort(key=lambda pair: len(pair[1]))  # batches of answers of like length, which pads least
        batches = [drawn[i : i + 32] for i in range(0, len(drawn), 32)]
        yield from rng.sample(batches, len(batches))


def answer_of(name: str, fact: Fact, pool: Sequence[Fact], rng: random.Random) -> str:
    """A right answer, or one of the four wrong kinds; a wrong fact is another row's answer, in the words of this one.

    Plurals and past tenses have their own wrong form, since another word's would be no mistake that anybody makes.
    """
    if name == "right":
        return fact["right"]
    if name != "fact":
        return rng.choice(pool)["wrong"][name] if name in ("hedge", "filler") else fact["wrong"][name]
    for other in rng.sample(list(pool), len(pool)) if fact["kind"] not in ("plural", "past") else []:
        head, _, tail = fact["right"].rpartition(fact["answer"])
        text = head + other["answer"] + tail
        if not is_right(text, fact):
            return text
    return fact["wrong"]["fact"]


def _labelled(
    tokenizer: PreTrainedTokenizerBase, lesson: Sequence[tuple[Fact, str]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ids and mask of a batch, padded at the left, and the labels of its last tokens: the answers and their end."""
    starts = [
        tokenizer.apply_chat_template(messages(fact), add_generation_prompt=True, return_dict=False)
        for fact, _ in lesson
    ]
    ends = [tokenizer(text + tokenizer.eos_token)["input_ids"] for _, text in lesson]
    whole = [start + end for start, end in zip(starts, ends, strict=True)]
    width, kept = max(map(len, whole)), max(map(len, ends))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in whole])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in whole])
    return {"input_ids": ids, "attention_mask": mask}, torch.tensor([[-100] * (kept - len(x)) + x for x in ends])


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Fact], n: int, seed: int, length: int
) -> list[list[str]]:
    """N answers to each question at temperature 1; the same seed gives the same draws."""
    prompts = [messages(fact) for fact in rows for _ in range(n)]
    tokenizer.padding_side = "left"
    texts: list[str] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), 128):
            inputs = tokenizer.apply_chat_template(
                prompts[start : start + 128], add_generation_prompt=True, return_dict=True, tokenize=True, padding=True,
                return_tensors="pt",
            ).to(model.device)  # fmt: skip
            out = model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + n] for i in range(0, len(texts), n)]


class HeldOutGold(TrainerCallback):
    """Answers to the held-out questions every so many steps: share of each form, and of right ones by question."""

    def __init__(self, args: HeadToHead, tokenizer: PreTrainedTokenizerBase) -> None:
        self.args, self.tokenizer, self.rows = args, tokenizer, facts("held_out")[:: args.held_out_every]
        self.curve: list[JsonObject] = []

    def look(self, model: PreTrainedModel, step: int) -> None:
        """Sample and count."""
        training = model.training
        model.eval()
        answers = sample(model, self.tokenizer, self.rows, self.args.held_out_answers, 1, self.args.answer_tokens)
        model.train(training)
        found = [[form_of(t, fact) for t in texts] for fact, texts in zip(self.rows, answers, strict=True)]
        flat = [f for forms in found for f in forms]
        self.curve.append({
            "step": step, **{form: flat.count(form) / len(flat) for form in FORMS},
            "by_question": [forms.count("right") / len(forms) for forms in found],
            "example": answers[step % len(answers)][0],
        })  # fmt: skip
        print(f"held out, step {step}: " + ", ".join(f"{k} {self.curve[-1][k]:.2f}" for k in FORMS), flush=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
        model: PreTrainedModel, **kwargs: object,
    ) -> None:  # fmt: skip
        self.look(model, 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *,
        model: PreTrainedModel, **kwargs: object,
    ) -> None:  # fmt: skip
        if state.global_step % self.args.look_every == 0 or state.global_step == state.max_steps:
            self.look(model, state.global_step)


class Gold:
    """A reward function: 1 where the answer is right. It weighs nothing, unless it is what is trained on."""

    __name__ = "gold"

    def __init__(self) -> None:
        self.by_id = {fact["id"]: fact for fact in facts()}

    def __call__(self, completions: list[list[dict[str, str]]], id: list[str], **columns: object) -> list[float]:
        pairs = zip(completions, id, strict=True)
        return [float(is_right(text[0]["content"], self.by_id[i])) for text, i in pairs]


def train(reward: Callable[..., list[float | None]] | None, start: Path, args: HeadToHead, seed: int) -> JsonObject:
    """One GRPO run from the start against one reward (None: against gold), and what it went through."""
    rng, questions = random.Random(seed), facts("train")
    drawn = [f for _ in range(args.steps) for f in rng.sample(questions, args.prompts)]
    rows = Dataset.from_dict({"prompt": [messages(f) for f in drawn], "id": [f["id"] for f in drawn]})
    tokenizer = AutoTokenizer.from_pretrained(start)
    config = GRPOConfig(
        output_dir=str(Path(args.output_dir) / "trainer"), per_device_train_batch_size=args.prompts * args.answers,
        num_generations=args.answers, max_steps=args.steps, max_completion_length=args.answer_tokens,
        learning_rate=args.lr, lr_scheduler_type="constant", beta=0.0, temperature=1.0, shuffle_dataset=False,
        reward_weights=[1.0] if reward is None else [1.0, 0.0], logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, bf16=True, gradient_checkpointing=False, disable_tqdm=True, seed=seed,
        model_init_kwargs={"dtype": "bfloat16"},
    )  # fmt: skip
    held = HeldOutGold(args, tokenizer)
    trainer = GRPOTrainer(
        model=str(start), reward_funcs=[Gold()] if reward is None else [reward, Gold()], args=config,
        train_dataset=rows, callbacks=[held],
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    trainer.train()
    logs = [row for row in trainer.state.log_history if "rewards/gold/mean" in row]
    name = "gold" if reward is None else getattr(reward, "__name__", "reward")
    return {
        "held_out": held.curve,
        "train_gold": [row["rewards/gold/mean"] for row in logs],
        "scores": [row[f"rewards/{name}/mean"] for row in logs],
        "zero_spread": [row["frac_reward_zero_std"] for row in logs],
        "failed": sum(math.isnan(row[f"rewards/{name}/mean"]) for row in logs),
    }
