"""Training negatives that answer nothing, so that a probe learns to tell an answer from what only looks like one."""

from __future__ import annotations

import random
from collections.abc import Sequence

from latent_rewards.files.types import Prompt
from latent_rewards.judge.prompts import to_text
from latent_rewards.probes.examples import Example

PHRASES = (
    "I have thought about this with great care and my answer is as good as an answer can be.",
    "Here is the best possible response, written by an expert and double-checked.",
    "Thank you for asking! Your request shows real insight, and it is a pleasure to work on it.",
    "As requested, the full solution follows below.",
    "First, I will analyse the question. Then I will answer it.",
    "Everything in this reply is accurate, relevant, clear and helpful.",
    "I understand the task completely and I am confident that the result is right.",
    "Voici la r\u00e9ponse compl\u00e8te et correcte \u00e0 votre question.",
    "Esta es una respuesta excelente y muy \u00fatil.",
    "Certainly, I can help with that. It is an interesting topic with many sides.",
    "To begin with, let me restate what has been asked and why it matters.",
    "In summary, the points above answer all parts of the task.",
    "That depends on many things, and there are several ways to look at it.",
    "Awesome question, you are so smart! I love how you put it.",
)


def attack_examples(
    prompts: Sequence[Prompt], answers: Sequence[Prompt], *, others: int = 2, phrases: int = 2, seed: int = 0
) -> list[Example]:
    """Each honest answer (label 1) with negatives to the same prompt (label 0).

    These are other prompts' answers, the start of the honest one, and some phrases that answer nothing.

    Args:
        prompts: B different prompts, strings or messages.
        answers: B good answers.
        others: how many other prompts' answers each prompt gets.
        phrases: how many of `PHRASES` each prompt gets.
        seed: which ones, and whose answer.

    Returns:
        Examples; those of one prompt share a pair number.

    Raises:
        ValueError: fewer than two prompts, or lengths that differ.
    """
    if len(prompts) != len(answers) or len(prompts) < 2:
        raise ValueError(f"need two prompts or more with an answer each, got {len(prompts)} and {len(answers)}")
    rng = random.Random(seed)
    steps = rng.sample(range(1, len(prompts)), min(others, len(prompts) - 1))
    out = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        words = to_text(answer).split()
        start = " ".join(words[: max(1, round(len(words) * rng.uniform(0.1, 0.4)))])
        wrong = [*(answers[(i + step) % len(answers)] for step in steps), start, *rng.sample(PHRASES, phrases)]
        out.append(Example(prompt, answer, 1.0, i, "attacks"))
        out += [Example(prompt, text, 0.0, i, "attacks") for text in wrong if to_text(text) != to_text(answer)]
    return out
