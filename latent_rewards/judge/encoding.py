"""From a judge's dialogue to token ids: chat template for our words, plain characters for everybody else's."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from latent_rewards.judge.fast_tokens import FastSpelling
from latent_rewards.judge.labels import LabelTrie
from latent_rewards.judge.layout import ChatTemplate, Layout, pieces, sample_dialogue
from latent_rewards.judge.messages import Dialogue, Segment, Shape, shape_of, untrusted
from latent_rewards.judge.own_template import OwnTemplate, lays_out_itself
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.slow_tokens import SlowSpelling
from latent_rewards.judge.target import continuations
from latent_rewards.judge.template import ways_to_fill
from latent_rewards.judge.tokens import Spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_MAX_LAYOUTS = 4096
_MAX_CACHED = 1 << 20  # tokens, each text counted as 16 more


@dataclass(frozen=True)
class Encoded:
    """Token ids of one dialogue.

    Attributes:
        ids: T token ids.
        completion: first and last (exclusive) token that stands for characters of the completion alone; a token that
            it shares with our words is left out at its end.
        head: how many tokens come before any untrusted text; the last of them may depend on how that text begins.
        problem: why this text cannot be read, or None; its ids must not be scored then.
        target: first token of the target, which ends the text; None of a text without one.
    """

    ids: list[int]
    completion: tuple[int, int]
    head: int = 0
    problem: str | None = None
    target: int | None = None


class Encoder:
    """Tokenises dialogues and labels for one tokenizer; safe to call from threads.

    The ids are those of `tokenizer.apply_chat_template(..., tokenize=True)` on the whole text. Only our words and the
    template's may hold control tokens: in untrusted segments they are read as the characters they are written with.

    Args:
        tokenizer: any Hugging Face tokenizer.
        chat_template_kwargs: extra variables for its chat template; the default turns thinking off where the template
            knows how, so that the label is the next token.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, chat_template_kwargs: Mapping[str, object] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._own = OwnTemplate(tokenizer, chat_template_kwargs) if lays_out_itself(tokenizer) else None
        if self._own is None:
            self._template = ChatTemplate(tokenizer, chat_template_kwargs)
            self._tokens: Spelling = _fast(tokenizer) or SlowSpelling(tokenizer)
        self._lock = threading.RLock()
        self._cache: OrderedDict[Shape, tuple[array[int], Encoded]] = OrderedDict()
        self._layouts: dict[Shape, Layout] = {}

    @property
    def control(self) -> dict[int, str]:
        """Control tokens by id: what nobody's text but ours can spell."""
        return {} if self._own else self._tokens.control

    @property
    def system_role(self) -> str:
        """How the judge's instructions reach it: "its own" role, "merged into the user turn", or "no chat template"."""
        return self._own.system_role(sample_dialogue()) if self._own else self._layout(sample_dialogue()).system_role

    @property
    def thinking(self) -> str:
        """What became of the judge's thought before a label, in one line."""
        return "as the tokenizer's own template does" if self._own else self._layout(sample_dialogue()).thinking

    def encode(self, dialogues: Sequence[Dialogue]) -> list[Encoded]:
        """Token ids of each dialogue, ending where the judge's label is due, or with the target.

        Raises:
            ValueError: the chat template loses text of ours or of a row, or opens a thought that we cannot close.
        """
        keys = [self._key(d) for d in dialogues]
        with self._lock:
            missing = {k: d for k, d in zip(keys, dialogues, strict=True) if k not in self._cache}
            for key, found in zip(missing, self._encode(list(missing.values())), strict=True):
                self._cache[key] = array("i", found.ids), replace(found, ids=[])
            out = []
            for key, dialogue in zip(keys, dialogues, strict=True):
                ids, found = self._cache[key]
                self._cache.move_to_end(key)
                out.append(replace(found, ids=list(ids), problem=dialogue.problem or found.problem))
            n_cached = sum(len(ids) + 16 for ids, *_ in self._cache.values())
            while n_cached > _MAX_CACHED:
                n_cached -= len(self._cache.popitem(last=False)[1][0]) + 16
        return out

    def trie(self, prompt: JudgePrompt) -> LabelTrie:
        """Label paths in this tokenizer.

        Raises:
            ValueError: labels collide in this tokenizer; the message names the prompt file.
        """
        if prompt.labels is None:
            raise ValueError(f"prompt {prompt.name!r} has no labels to read (kind {prompt.kind!r})")
        tails = dict.fromkeys(self._tails(prompt))
        try:
            return LabelTrie.build(
                prompt.labels, lambda text: [*self._spellings(text), *(c for t in tails for c in self._after(t, text))]
            )
        except ValueError as err:
            raise ValueError(f"{prompt.path or prompt.name}: {err}") from err

    def own_ids(self, prompt: JudgePrompt) -> set[int]:
        """Token ids that every text of a prompt holds or a label needs, whatever the rows say."""
        ids = {i for e in self.encode(_samples(prompt)) for i in e.ids}
        return ids | ({i for path in self.trie(prompt).paths for i in path} if prompt.labels else set())

    def layout_hash(self, prompt: JudgePrompt) -> str:
        """Hash of what surrounds a row's text: the rendered template, its options and our words as token ids."""
        content: list[object] = [self.system_role, self.thinking]
        for dialogue in _samples(prompt):
            parts = [] if self._own else self._layout(dialogue).parts
            content.append([self.encode([dialogue])[0].ids, [p if isinstance(p, int) else p.text for p in parts]])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _spellings(self, text: str) -> list[list[int]]:
        """Token sequences of a label: as text of its own, and as the continuation of a line.

        A label that is an added token counts, and so does the same word in the tokens of the vocabulary.
        """
        found = [*self._whole([text]), *self._after("\n", text)]
        if not self._own:
            with self._lock:
                (bare,) = self._tokens.bare([text])
                found += [bare] if self._tokens.decode(bare).strip() == text.strip() else []
        return [list(ids) for ids in dict.fromkeys(map(tuple, found)) if ids]

    def _after(self, tail: str, text: str) -> list[list[int]]:
        """How a text goes on after another one, unless it changes the tokens of that."""
        anchor, both = self._whole([tail, tail + text])
        return [both[len(anchor) :]] if both[: len(anchor)] == anchor and len(both) > len(anchor) else []

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:
            return self._own.whole(texts) if self._own else self._tokens.whole(texts)

    def _tails(self, prompt: JudgePrompt) -> list[str]:
        """What stands right before the label, for every way that the template may end."""
        if self._own:
            return []
        ends = [self._layout(d).parts[-1:] for d in _samples(prompt)]
        return [p.text for end in ends for p in end if isinstance(p, Segment)]

    def _encode(self, dialogues: Sequence[Dialogue]) -> list[Encoded]:
        if self._own:
            return [self._encode_own(self._own, d) for d in dialogues]
        if any(d.target for d in dialogues):
            return self._encode_targets(dialogues)
        made = [pieces(self._layout(d), untrusted(d)) for d in dialogues]
        tokens = self._tokens.encode([row for row, _ in made], [borders for _, borders in made])
        head, out = self._head(), []
        for dialogue, (_, borders), found in zip(dialogues, made, tokens, strict=True):
            at = [(len(head) + before, len(head) + after) for before, after in found.borders]
            span = (at[1][1], max(at[1][1], at[2][0])) if borders[1] >= 0 else (0, 0)
            first = at[0][0] if borders[0] >= 0 else 0
            out.append(Encoded([*head, *found.ids], span, first, dialogue.problem or found.problem))
        return out

    def _encode_targets(self, dialogues: Sequence[Dialogue]) -> list[Encoded]:
        """As `_encode`; what comes before the targets is tokenised without them, once for all that share it."""
        bare = [d._replace(target=None) for d in dialogues]
        before = {self._key(d): d for d in bare}
        known = dict(zip(before, self._encode(list(before.values())), strict=True))
        own = [known[self._key(d)] for d in bare]
        rows, n = [pieces(self._layout(d), untrusted(d))[0] for d in dialogues], len(self._head())
        targets = continuations(self._tokens, rows, [e.ids[n:] for e in own], [d.target or "" for d in dialogues])
        return [
            replace(e, ids=[*e.ids, *ids], problem=e.problem or why, target=len(e.ids))
            for e, (ids, why) in zip(own, targets, strict=True)
        ]

    def _encode_own(self, own: OwnTemplate, dialogue: Dialogue) -> Encoded:
        segments = [s for t in dialogue.turns for s in t.segments]
        at = [i for i, s in enumerate(segments) if s.slot is not None]
        completion = [i for i in at if segments[i].slot == "completion"]
        borders = [(at[0], 0)] if at else []
        borders += [(completion[0], 0), (completion[-1], len(segments[completion[-1]].text))] if completion else []
        ids, found, problem = own.encode(dialogue, borders)
        span = (found[-2], max(found[-2:])) if completion else (0, 0)
        made = Encoded(ids, span, found[0] if at else 0, dialogue.problem or problem)
        if not dialogue.target:
            return made
        whole, why = own.continued(dialogue, ids)
        return replace(made, ids=whole, problem=made.problem or why, target=len(ids))

    def _head(self) -> list[int]:
        """BOS for tokenizers that want one and have no chat template to write it."""
        if self._template.text is not None:
            return []
        bos = self.tokenizer.bos_token_id
        first = self.tokenizer("a", verbose=False)["input_ids"][:1]
        return [bos] if bos is not None and list(first) == [bos] else []

    def _key(self, dialogue: Dialogue) -> Shape:
        return (shape_of(dialogue), dialogue.problem, dialogue.target, *(s.text for s in untrusted(dialogue)))

    def _layout(self, dialogue: Dialogue) -> Layout:
        """The rendered dialogue; cached by its shape."""
        if self._own:
            raise ValueError("this tokenizer lays dialogues out itself and has no chat template of ours to show")
        shape = shape_of(dialogue)
        if shape not in self._layouts:
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[shape] = self._template.layout(dialogue)
        return self._layouts[shape]


def _fast(tokenizer: PreTrainedTokenizerBase) -> Spelling | None:
    """Reads a tokenizer by its backend, unless it has none or does more than that."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None
    made, probe = FastSpelling(tokenizer), "How good? 10\n\n  Yes."
    same = list(tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]) == made.whole([probe])[0]
    return made if same else None


def _samples(prompt: JudgePrompt) -> list[Dialogue]:
    """The prompt's dialogues with "x" for every text that is there, for every way its columns may be filled."""
    ways = ways_to_fill(prompt.slots)
    return [prompt.render({s: "x" if full or s == prompt.target else "" for s, full in filled}) for filled in ways]
