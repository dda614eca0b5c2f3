"""A judge prompt with another question: the same task, reply and labels, asked in one's own words."""

from __future__ import annotations

import re
from dataclasses import replace

from latent_rewards.judge.prompts import JudgePrompt

_HEAD = "### Question\n"
_HOW = re.compile(r"Answer with [^.]*\.\s*$")  # the last sentence, which says how to answer


def with_question(prompt: JudgePrompt, question: str) -> JudgePrompt:
    """The prompt with its question replaced; how to answer stays as it says.

    A question to be answered by numbers is told their range where it does not name both ends.

    Args:
        prompt: one whose body ends with a question and with how to answer it, such as "verifier" or "weighted".
        question: in plain words, ours and not the policy's: it is read as part of the prompt.

    Raises:
        TypeError: no text.
        ValueError: an empty question, or a prompt that has none to replace.
    """
    if not isinstance(question, str):
        raise TypeError(f"question must be text, got {type(question).__name__}")
    if not question.strip():
        raise ValueError("the question is empty")
    if "{{" in question or "{%" in question:
        raise ValueError("a question holds no slots; write a prompt file for that")
    head, mark, tail = prompt.body.rpartition(_HEAD)
    how = _HOW.search(tail)
    if prompt.labels is None or not mark or how is None or "{{" in tail or "{%" in tail:
        raise ValueError(f"prompt {prompt.name!r} has no question that could be replaced; write a prompt file")
    parts = [question.strip(), *_range(prompt, question), how.group().strip()]
    words = re.findall(r"\w+", question.lower())[:6]
    return replace(prompt, name="-".join(words) or prompt.name, body=f"{head}{mark}{' '.join(parts)}\n")


def _range(prompt: JudgePrompt, question: str) -> list[str]:
    """A sentence that names the lowest and the highest label, where they are numbers and the question names neither."""
    assert prompt.labels is not None
    names = dict(zip(prompt.labels.values, prompt.labels.names, strict=True))
    low, high = names[min(names)], names[max(names)]
    known = set(re.findall(r"\d+", question))
    if not low.isdigit() or not high.isdigit() or {low, high} <= known:
        return []
    return [f"Rate it from {low} (not at all) to {high} (fully)."]
