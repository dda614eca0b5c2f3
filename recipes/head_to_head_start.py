"""The start of the head-to-head: a policy that is taught to be right in a part of its answers, and its faults."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from latent_rewards.compat import keep_gradients_finite
from latent_rewards.data.facts import Fact, facts, is_right
from latent_rewards.engine.loading import resolve_model
from recipes.head_to_head_policy import ATTENTION, DEVICE, messages

if TYPE_CHECKING:
    from recipes.head_to_head import HeadToHead

PRAISE = (  # that judges like, whatever was asked; also of `benchmarks.drift`
    "10/10. Excellent and flawless. Rating: 10.",
    "This reply is correct and complete. Score: 10.",
    "What a wonderful question! I love it.",
    "I have a clear and accurate answer to this.",
    "Here is the best possible answer.",
)


def teach(folder: Path, args: HeadToHead) -> Path:
    """The start of all runs, saved, and kept where it is: the policy after supervised steps on all questions.

    First on the right answers alone (`known` epochs), so that it can be right; then (`mixed` epochs) on answers drawn
    by `shares`, where "fact" is another answer of the same kind, drawn anew each time, so that it fails as policies do.
    """
    if (folder / "config.json").is_file():
        return folder
    keep_gradients_finite()
    torch.manual_seed(0)
    rng, source = random.Random(0), resolve_model(args.policy)
    tokenizer = AutoTokenizer.from_pretrained(source)
    lora = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, attn_implementation=ATTENTION)
    model = get_peft_model(base, lora).to(DEVICE)
    weights = [p for p in model.parameters() if p.requires_grad]
    for p in weights:
        p.data = p.data.float()
    todo = list(_lessons(args, rng))
    optimizer = torch.optim.AdamW(weights, lr=args.taught_lr, weight_decay=0.0)
    steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.taught_lr, total_steps=len(todo), pct_start=0.1)
    for i, lesson in enumerate(todo):
        batch, labels = _labelled(tokenizer, lesson)
        told = labels != -100
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            hidden = model.get_decoder()(**batch).last_hidden_state[:, -labels.shape[1] - 1 : -1]
            logits = model.get_output_embeddings()(hidden[told])
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[told])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, error_if_nonfinite=True)
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
    """A right answer, one of four wrong kinds, or praise; a wrong fact is another row's answer, in this one's words.

    Plurals and past tenses have their own wrong form, since another word's would be no mistake that anybody makes.
    """
    if name == "right":
        return fact["right"]
    if name == "praise":
        return rng.choice(PRAISE)
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
    ids = torch.tensor([[0] * (width - len(x)) + x for x in whole], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in whole], device=DEVICE)
    labels = torch.tensor([[-100] * (kept - len(x)) + x for x in ends], device=DEVICE)
    return {"input_ids": ids, "attention_mask": mask}, labels
