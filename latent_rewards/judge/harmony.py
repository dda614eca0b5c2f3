"""OpenAI's harmony format: the channels of gpt-oss, taken apart (`docs/format.md` of openai/harmony)."""

from __future__ import annotations

import re

from latent_rewards.judge.tag_marks import Parts, fences

HARMONY = ("<|channel|>analysis<|message|>", "<|end|>")
_MESSAGE = re.compile(
    r"(?:<\|start\|>\w*)?(?P<before>[^<\n]*)<\|channel\|>\s*(?P<channel>\w+)(?P<after>[^<\n]*)(?:<\|constrain\|>[^<\n]*)?"
    r"<\|message\|>(?P<text>.*?)(?:<\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>)|\Z)",
    re.DOTALL,
)
_HANDOVER = re.compile(r"<\|end\|>\s*(?=<\|start\|>assistant[^<\n]*<\|channel\|>)")
_SPOKEN = re.compile(r"\s*analysis(?P<thought>.*)assistantfinal(?P<text>.*)", re.DOTALL)


def split_channels(text: str) -> Parts | None:
    """Channels of gpt-oss: "analysis" is thought, "final" and "commentary" are said; None where there are none."""
    if text.lstrip()[:8] == "analysis" and (plain := _SPOKEN.match(text)):  # decoded without special tokens
        return Parts((plain["thought"],), plain["text"])
    if "<|channel|>" not in text:
        return None
    thoughts, said, at = [], [], len(text) - len(text.lstrip())
    if not _MESSAGE.match(text, at):
        blocks = fences(text)
        over = (m for m in _HANDOVER.finditer(text) if not any(a <= m.start() < b for a, b in blocks))
        head = next(over, None)
        if head is None:
            return None
        thoughts, at = [text[: head.start()]], head.end()
    last = "analysis"
    for m in _MESSAGE.finditer(text, at):
        said.append(text[at : m.start()])
        at, last = m.end(), m["channel"]
        if last == "analysis" and "to=" not in m["before"] + m["after"]:
            thoughts.append(m["text"])
            continue
        to = next((w for w in f"{m['before']} {m['after']}".split() if w.startswith("to=")), "")
        said.append(f"{to} {m['text']}" if to else m["text"])
        last = "said"
    said.append(text[at:])
    answer = "\n\n".join(s for s in said if s.strip())
    return Parts(tuple(thoughts), answer, last == "analysis" and not text[at:].strip())
