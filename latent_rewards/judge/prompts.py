"""Judge prompts: loaded from files, checked, and rendered to segments that keep our words apart from untrusted text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import TemplateError

from latent_rewards.files.sources import RowError
from latent_rewards.judge.filling import fill, target_of
from latent_rewards.judge.labels import Labels
from latent_rewards.judge.messages import Dialogue as Dialogue
from latent_rewards.judge.messages import Row
from latent_rewards.judge.messages import Segment as Segment
from latent_rewards.judge.messages import Turn as Turn
from latent_rewards.judge.messages import to_segments as to_segments
from latent_rewards.judge.messages import to_text as to_text
from latent_rewards.judge.prompt_files import fields_of, prompt_file
from latent_rewards.judge.prompt_files import prompt_folder as prompt_folder
from latent_rewards.judge.target import check_target
from latent_rewards.judge.template import check_words, render_body, slots_of
from latent_rewards.judge.thoughts import Reasoning, Treatment, read_reply, settled
from latent_rewards.judge.trajectory import SHOWING, check_order, supplied


@dataclass(frozen=True)
class JudgePrompt:
    """A judge prompt file. Load one with `JudgePrompt.load("weighted")` or `JudgePrompt.load("path/to/mine.yaml")`.

    Attributes:
        name: short name used in logs.
        kind: "label" (the answer is one of `labels`, read from probabilities), "likelihood" (the answer is the text of
            `target`, whose probability is read) or "generate" (text is sampled, parsed).
        body: Jinja template of the user turn; `{{ prompt }}`, `{{ completion }}` and dataset columns are its slots,
            and what is made from the completion: `{{ final_answer }}` and `{{ trajectory }}`.
        system: fixed head that comes before everything else.
        prefill: text that the judge's answer starts with.
        labels: for "label".
        scale: (lowest, highest) rating, for "generate"; None where what is written is no rating.
        pattern: regular expression whose first group is the rating, for "generate"; its last match counts.
        target: slot whose text stands as the judge's answer, for "likelihood"; white space around it is not read.
        optional: slots that may be missing from a row; they render as empty and false.
        reasoning: of the policy's thoughts in completions: "strip" sets them aside, "keep" shows them, "only" shows
            nothing else. In earlier turns of the assistant they are shown with "keep" alone.
        unfinished: what a reply becomes that ends inside its thought: "none" (no score) or "keep" (it stays as it is).
        opened: completions are known to begin inside a thought, which the policy's template opened.
        thought_tags: pairs of opening and closing tag of a thought, besides `thought_tags.THOUGHT_TAGS`.
        source: where the idea comes from.
        path: file it was loaded from, for messages.
    """

    name: str
    kind: str
    body: str
    system: str = ""
    prefill: str = ""
    labels: Labels | None = None
    scale: tuple[int, int] | None = None
    pattern: str | None = None
    completion: bool = True
    target: str | None = None
    optional: tuple[str, ...] = ()
    source: str = ""
    path: str = ""
    reasoning: Reasoning = "strip"
    unfinished: Literal["none", "keep"] = "none"
    opened: bool = False
    thought_tags: tuple[tuple[str, str], ...] = ()

    @classmethod
    def load(cls, name_or_path: str | Path | JudgePrompt, *, fence: str | None = None) -> JudgePrompt:
        """Load a shipped prompt by name, or a prompt file by path.

        Args:
            name_or_path: which one; a `JudgePrompt` is given back as it is.
            fence: what stands for `{{ fence }}`, a line around untrusted text; default $LATENT_REWARDS_FENCE, else made
                from the file, so that the same file gives the same scores. Set a secret one per run where attackers may
                have read the file.

        Raises:
            FileNotFoundError: neither a shipped name nor a file.
            ValueError: unknown key, missing key or slot, slots in the wrong order, or labels that collide; the message
                starts with the file.
        """
        if isinstance(name_or_path, JudgePrompt):
            return name_or_path
        path = prompt_file(name_or_path)
        try:
            prompt = cls(**fields_of(yaml.safe_load(path.read_text(encoding="utf-8")), path, fence), path=str(path))
            prompt._validate()
            return prompt
        except (ValueError, TypeError, OverflowError, yaml.YAMLError, TemplateError, re.error) as err:
            raise ValueError(f"{path}: {err}") from err
        except RecursionError as err:
            raise ValueError(f"{path}: nested too deeply") from err

    def _validate(self) -> None:
        slots = self.slots
        self.treatment.check()
        if self.kind == "label" and self.labels is None:
            raise ValueError("kind 'label' needs 'labels'")
        if self.kind == "generate":
            if (self.pattern is None) != (self.scale is None):
                raise ValueError("a rating in a written answer needs both 'pattern' and 'scale'")
            if self.pattern is not None and re.compile(self.pattern).groups < 1:
                raise ValueError("'pattern' needs one group: the rating")
        if self.kind not in ("label", "likelihood", "generate"):
            raise ValueError(f"kind must be 'label', 'likelihood' or 'generate', got {self.kind!r}")
        check_target(self.target, self.kind, supplied(slots_of(self.body)), self.optional)
        if "prompt" not in slots:
            raise ValueError("the body has no {{ prompt }} slot")
        if self.completion and "completion" not in slots:
            raise ValueError("the body has no {{ completion }} slot (set 'completion: false' if it needs none)")
        unused = sorted(set(self.optional) - set(slots))
        if unused:
            raise ValueError(f"optional slots {unused} do not occur in the body")
        for text in (self.system, self.prefill):
            if "{{" in text or "{%" in text:
                raise ValueError("slots belong in 'body'; 'system' and 'prefill' are constant")
        check_words(system=self.system, body=self.body, prefill=self.prefill)
        check_order(self.body)

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the values a row must supply, sorted."""
        own = slots_of(self.body)
        return supplied(own if self.target is None else (*own, self.target))

    @property
    def shown(self) -> tuple[str, ...]:
        """Those of `slots` that the judge is shown: all but the target."""
        return tuple(slot for slot in self.slots if slot != self.target)

    @property
    def treatment(self) -> Treatment:
        """How thoughts are treated."""
        return Treatment(self.reasoning, self.unfinished, self.opened, self.thought_tags)

    @property
    def hash(self) -> str:
        """Content hash of everything that changes what the judge reads or how it is read."""
        content = {k: getattr(self, k) for k in ("kind", "system", "body", "prefill", "scale", "pattern", "optional")}
        content["labels"] = self.labels.key if self.labels else None
        if self.target is not None:
            content["target"] = self.target
        if self.treatment != Treatment():
            content["treatment"] = list(self.treatment)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def render_all(self, rows: Sequence[Row]) -> list[Dialogue]:
        """Fill the slots of every row; see `render`.

        Raises:
            RowError: the first row that cannot be filled in.
        """
        out = []
        for i, row in enumerate(rows):
            try:
                out.append(self.render(row))
            except ValueError as err:
                raise RowError(i, err) from err
        return out

    def render(self, row: Row) -> Dialogue:
        """Fill the slots of one row.

        Args:
            row: slot name -> string or list of chat messages (`prompt`, `completion`, dataset columns). Empty text is
                rendered as it is.

        Returns:
            The judge's dialogue. Untrusted text stays in segments of its own: nothing of it meets a template engine.

        Raises:
            ValueError: a slot is missing or is neither text nor messages; or the target is a column, and empty.
        """
        values, problem = fill(self.body, row, name=self.name, treatment=self.treatment, optional=self.optional)
        target, empty = target_of(row, self.target, self.name, self.treatment)
        filled = tuple((s, any(seg.text for seg in found)) for s, found in values.items())
        parts = render_body(self.body, filled)
        main = next((part for part in parts[1::2] if part in SHOWING), None)
        segments: list[Segment] = []
        for i, part in enumerate(parts):
            if i % 2:  # what is cut when it is too long, and where prefixes part, is the completion as first shown
                segments += [s._replace(slot="completion") if part == main and s.slot else s for s in values[part]]
            elif part:
                segments.append(Segment(part))
        turns = [Turn("system", (Segment(self.system.strip()),))] if self.system.strip() else []
        user, sampled = Turn("user", tuple(segments)), self.kind == "generate"
        return Dialogue((*turns, user), self.prefill, sampled, problem or empty, target)

    def with_thoughts(
        self,
        reasoning: Reasoning | None = None,
        tags: Sequence[tuple[str, str]] = (),
        *,
        keep_unfinished: bool = False,
        opened: bool | None = None,
    ) -> JudgePrompt:
        """The same prompt with another way to treat thoughts; None leaves a setting as it is. See the attributes.

        Raises:
            ValueError: a setting that means nothing.
        """
        out = replace(
            self,
            reasoning=self.reasoning if reasoning is None else reasoning,
            unfinished="keep" if keep_unfinished else self.unfinished,
            opened=self.opened if opened is None else opened,
            thought_tags=(*self.thought_tags, *((opens, closes) for opens, closes in tags)),
        )
        out.treatment.check()
        return self if out == self else out

    def ends_in_thought(self, completion: object) -> bool:
        """Whether a completion ends inside a thought, whatever becomes of it."""
        return read_reply(completion, self.treatment).unfinished

    def as_judged(self, row: Row, change: Callable[[Any], Any] = lambda value: value) -> dict[str, Any]:
        """A row whose completion is what the judge reads of it, thoughts treated, or a change of that.

        Args:
            row: a row; one that must not be scored stays as it is.
            change: from text or messages to text or messages.
        """
        reply = read_reply(row["completion"], self.treatment)
        if reply.problem is not None:
            return dict(row)
        return {**row, "completion": settled(change(reply.shown), self.treatment)}
