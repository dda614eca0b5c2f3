"""From a judge's dialogue to token ids: chat template for our words, plain characters for everybody else's."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from latent_rewards.labels import LabelTrie
from latent_rewards.prompts import Dialogue, JudgePrompt, Segment
from latent_rewards.template import ways_to_fill

logger = logging.getLogger(__name__)

_MAX_LAYOUTS = 4096
_MAX_CACHED = 1 << 20  # tokens, each text counted as 16 more


@dataclass(frozen=True)
class Encoded:
    """Token ids of one dialogue, which of them are the completion, and how many come before any untrusted text."""

    ids: list[int]
    completion: tuple[int, int]
    head: int = 0


class Encoder:
    """Tokenises dialogues and labels for one tokenizer; safe to call from threads.

    Every segment is tokenised apart. Ours may hold control tokens; in untrusted segments every added token of the
    tokenizer, special or not, is read as the characters it is written with.

    Args:
        tokenizer: any Hugging Face tokenizer.
        chat_template_kwargs: extra variables for its chat template; the default turns thinking off where the template
            knows `enable_thinking`, so that the label is the next token.
    """

    def __init__(self, tokenizer: Any, *, chat_template_kwargs: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self._plain = copy.deepcopy(tokenizer)
        self._kwargs = {"enable_thinking": False} if chat_template_kwargs is None else dict(chat_template_kwargs)
        added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
        texts = {int(i): str(t.content if hasattr(t, "content") else t) for i, t in added.items()}
        texts |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self._forbidden = {i: t for i, t in texts.items() if t.replace("\u2581", " ").strip()}
        self._added = sorted({t.strip() for t in self._forbidden.values() if len(t.strip()) > 1})
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, bool], array[int]] = OrderedDict()
        self._layouts: dict[Any, list[Segment | int]] = {}

    def encode(self, dialogues: Sequence[Dialogue]) -> list[Encoded]:
        """Token ids of each dialogue, ending where the judge's label is due."""
        layouts = [self._layout(d) for d in dialogues]
        untrusted = [[s for t in d.turns for s in t.segments if s.slot is not None] for d in dialogues]
        with self._lock:
            self._fill({(s.text, True) for row in untrusted for s in row})
            self._fill({(p.text, False) for layout in layouts for p in layout if isinstance(p, Segment)})
            out = []
            for layout, row in zip(layouts, untrusted, strict=True):
                ids: list[int] = list(self._head())
                start = end = 0
                head: int | None = None
                for part in layout:
                    ours = isinstance(part, Segment)
                    head = len(ids) if head is None and not ours else head
                    segment = part if isinstance(part, Segment) else row[part]
                    if not ours and segment.slot == "completion":
                        start = start or len(ids)
                    ids += self._cache[segment.text, not ours]
                    if not ours and segment.slot == "completion":
                        end = len(ids)
                out.append(Encoded(ids, (start, end), head or 0))
            n_cached = sum(len(ids) + 16 for ids in self._cache.values())
            while n_cached > _MAX_CACHED:
                n_cached -= len(self._cache.popitem(last=False)[1]) + 16
        return out

    def layout_hash(self, prompt: JudgePrompt) -> str:
        """16 hex digits of all that the judge reads beside the judged text, for every way to fill the prompt's slots.

        The chat template is part of it, with what it takes from its variables and from the clock.
        """
        rows = [{slot: "x" if full else "" for slot, full in filled} for filled in ways_to_fill(prompt.slots)]
        layouts = [self._layout(prompt.render(row)) for row in rows]
        parts = [[part.text if isinstance(part, Segment) else part for part in layout] for layout in layouts]
        return hashlib.sha256(json.dumps([self._head(), parts]).encode()).hexdigest()[:16]

    def trie(self, prompt: JudgePrompt) -> LabelTrie:
        """Label paths in this tokenizer.

        Raises:
            ValueError: labels collide in this tokenizer; the message names the prompt file.
        """
        if prompt.labels is None:
            raise ValueError(f"prompt {prompt.name!r} has no labels to read (kind {prompt.kind!r})")
        try:
            return LabelTrie.build(prompt.labels, self._spellings)
        except ValueError as err:
            raise ValueError(f"{prompt.path or prompt.name}: {err}") from err

    def _spellings(self, text: str) -> list[list[int]]:
        """Token sequences of a label: as text of its own, and as the continuation of a line."""
        with self._lock:
            alone, anchor, both = (self._tokens([t], plain=True)[0] for t in (text, "\n", "\n" + text))
        continued = both[len(anchor) :] if both[: len(anchor)] == anchor else alone
        return [alone] if continued == alone or not continued else [alone, continued]

    def _fill(self, keys: set[tuple[str, bool]]) -> None:
        for plain in (True, False):
            missing = sorted(text for text, p in keys if p is plain and (text, p) not in self._cache)
            for text, ids in zip(missing, self._tokens(missing, plain=plain), strict=True):
                self._cache[text, plain] = array("i", ids)
        for key in keys:
            self._cache.move_to_end(key)

    def _tokens(self, texts: list[str], *, plain: bool) -> list[list[int]]:
        if not texts:
            return []
        if not plain:
            return [list(x) for x in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        rows = self._plain(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [
            list(ids) if self._forbidden.keys().isdisjoint(ids) else self._split(text)
            for text, ids in zip(texts, rows, strict=True)
        ]

    def _split(self, text: str) -> list[int]:
        """Tokens of a text that spells an added token which the tokenizer does not split by itself.

        The text is cut inside every occurrence, so that the pieces cannot be recognised. An added token of one
        character has no other spelling and becomes U+FFFD. What a normaliser of the tokenizer still turns into an
        added token is left out.
        """
        for single in (t for t in self._forbidden.values() if len(t) == 1 and t != "\ufffd"):
            text = text.replace(single, "\ufffd")
        lower = text.lower()
        here = "|".join(re.escape(t) for t in self._added if t.lower() in lower)
        found = re.finditer(f"(?=(?:{here}))", text, re.IGNORECASE) if here else ()
        cuts = [0, *(m.start() + 1 for m in found), len(text)]
        pieces = [text[i:j] for i, j in itertools.pairwise(cuts) if i < j]
        rows = self._plain(pieces, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        kept = self._forbidden.keys() - {self.tokenizer.unk_token_id}
        return [i for row in rows for i in row if i not in kept]

    def _head(self) -> list[int]:
        """BOS for tokenizers that want one and have no chat template to write it."""
        if self.tokenizer.chat_template:
            return []
        bos = self.tokenizer.bos_token_id
        first = self.tokenizer("a", verbose=False)["input_ids"][:1]
        return [bos] if bos is not None and list(first) == [bos] else []

    def _layout(self, dialogue: Dialogue) -> list[Segment | int]:
        """The rendered dialogue as our text and indices of untrusted segments; cached by its shape."""
        shape = (
            dialogue.prefill,
            tuple((t.role, tuple(s.text if s.slot is None else None for s in t.segments)) for t in dialogue.turns),
        )
        if shape not in self._layouts:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[shape] = self._render(dialogue)
        return self._layouts[shape]

    def _render(self, dialogue: Dialogue) -> list[Segment | int]:
        n = 0
        messages = []
        for turn in dialogue.turns:
            text = ""
            for segment in turn.segments:
                text += segment.text if segment.slot is None else _mark(n)
                n += segment.slot is not None
            messages.append({"role": turn.role, "content": text})
        text = self._template(messages) + dialogue.prefill
        parts: list[Segment | int] = []
        for i in range(n):
            before, mark, text = text.partition(_mark(i))
            if not mark or _mark(i) in text:
                raise ValueError("the judge's chat template drops, repeats or reorders parts of a message")
            parts += [Segment(before), i] if before else [i]
        return [*parts, Segment(text)] if text else parts

    def _template(self, messages: list[dict[str, str]]) -> str:
        if not self.tokenizer.chat_template:
            return "\n\n".join(m["content"] for m in messages) + "\n\n"
        try:
            return self._apply(messages)
        except TemplateError:
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise
            merged = {"role": messages[1]["role"], "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
            return self._apply([merged, *messages[2:]])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self._kwargs)


def _mark(i: int) -> str:
    return f"\ue002{i}\ue003"
