"""Judge prompts: loaded from files, checked, and rendered to segments that keep our words apart from untrusted text."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from jinja2 import TemplateError

from latent_rewards.files.sources import RowError
from latent_rewards.judge.labels import Labels
from latent_rewards.judge.messages import Segment as Segment
from latent_rewards.judge.messages import to_segments as to_segments
from latent_rewards.judge.messages import to_text as to_text
from latent_rewards.judge.template import ENV, check_words, slots_of, ways_to_fill
from latent_rewards.judge.thoughts import UNFINISHED, set_aside

_KEYS = {
    "name", "kind", "source", "system", "body", "prefill", "labels", "spellings", "scale", "pattern", "completion",
    "optional", "reasoning", "thought_tags", "unfinished",
}  # fmt: skip
_REPLIES = ("completion", "other")  # slots that hold what a policy wrote
_MARK = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*)\ue001")


class Turn(NamedTuple):
    """One chat turn of the judge's own dialogue."""

    role: str
    segments: tuple[Segment, ...]


class Dialogue(NamedTuple):
    """What the judge reads: turns, then the start of its own answer (`prefill`, ours, may be empty).

    `sampled`: the answer is to be written, so it may begin with a thought. `problem`: why this must not be judged.
    """

    turns: tuple[Turn, ...]
    prefill: str = ""
    sampled: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class JudgePrompt:
    """A judge prompt file. Load one with `JudgePrompt.load("weighted")` or `JudgePrompt.load("path/to/mine.yaml")`.

    Attributes:
        name: short name used in logs.
        kind: "label" (the answer is one of `labels`, read from probabilities) or "generate" (text is sampled, parsed).
        body: Jinja template of the user turn; `{{ prompt }}`, `{{ completion }}` and dataset columns are its slots.
        system: fixed head that comes before everything else.
        prefill: text that the judge's answer starts with.
        labels: for "label".
        scale: (lowest, highest) rating, for "generate".
        pattern: regular expression whose first group is the rating, for "generate"; its last match counts.
        optional: slots that may be missing from a row; they render as empty and false.
        reasoning: what is shown of a reply that holds a thought (see `latent_rewards.judge.thoughts`): "strip" its
            answer, "keep" all of it, "only" the thought.
        thought_tags: pairs of an opening and a closing tag, besides the known ones.
        unfinished: a reply that ends inside its thought is not judged ("none"), or as the text it is ("keep").
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
    optional: tuple[str, ...] = ()
    reasoning: Literal["strip", "keep", "only"] = "strip"
    thought_tags: tuple[tuple[str, str], ...] = ()
    unfinished: Literal["none", "keep"] = "none"
    source: str = ""
    path: str = ""

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
        path = Path(name_or_path)
        if not path.suffix and not path.exists():
            path = prompt_folder() / f"{name_or_path}.yaml"
        if not path.is_file():
            shipped = sorted(p.stem for p in prompt_folder().glob("*.yaml"))
            raise FileNotFoundError(
                f"no judge prompt {str(name_or_path)!r}: shipped are {shipped}, or give a file path"
            )
        try:
            return cls._from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), path, fence)
        except (ValueError, TypeError, OverflowError, yaml.YAMLError, TemplateError, re.error) as err:
            raise ValueError(f"{path}: {err}") from err
        except RecursionError as err:
            raise ValueError(f"{path}: nested too deeply") from err

    @classmethod
    def _from_dict(cls, raw: Any, path: Path, fence: str | None = None) -> JudgePrompt:
        if not isinstance(raw, dict):
            raise ValueError("expected a mapping of keys")
        unknown = sorted(str(k) for k in set(raw) - _KEYS)
        if unknown:
            raise ValueError(f"unknown keys {unknown}; known are {sorted(_KEYS)}")
        _check_types(raw)
        data = {k: v for k, v in raw.items() if k not in ("labels", "spellings")}
        fence = fence or os.environ.get("LATENT_REWARDS_FENCE") or _digest(raw["body"])[:12]
        for key in ("body", "system"):
            if isinstance(data.get(key), str):
                data[key] = re.sub(r"\{\{ *fence *\}\}", lambda _: f"=={fence}==", data[key])
        if "labels" in raw:
            data["labels"] = Labels.from_mapping(
                {_word(k): v for k, v in dict(raw["labels"]).items()},
                {_word(k): [_word(x) for x in v] for k, v in dict(raw.get("spellings") or {}).items()},
            )
        elif "spellings" in raw:
            raise ValueError("'spellings' needs 'labels'")
        if "scale" in data:
            low, high = (int(x) for x in data["scale"])
            if not low < high:
                raise ValueError(f"'scale' must be [lowest, highest], got {[low, high]}")
            data["scale"] = (low, high)
        data["optional"] = tuple(data.get("optional") or ())
        data["thought_tags"] = tuple((str(o), str(c)) for o, c in data.get("thought_tags") or ())
        data.setdefault("name", path.stem)
        prompt = cls(**data, path=str(path))
        prompt._validate()
        return prompt

    def _validate(self) -> None:
        slots = self.slots
        if self.kind == "label" and self.labels is None:
            raise ValueError("kind 'label' needs 'labels'")
        if self.kind == "generate":
            if not self.pattern or not self.scale:
                raise ValueError("kind 'generate' needs 'pattern' and 'scale'")
            if re.compile(self.pattern).groups < 1:
                raise ValueError("'pattern' needs one group: the rating")
        if self.reasoning not in ("strip", "keep", "only") or self.unfinished not in ("none", "keep"):
            raise ValueError(
                "'reasoning' must be 'strip', 'keep' or 'only', and 'unfinished' 'none' or 'keep', got "
                f"{self.reasoning!r} and {self.unfinished!r}"
            )
        if any(not tag.strip() for pair in self.thought_tags for tag in pair):
            raise ValueError(f"'thought_tags' are pairs of texts, got {self.thought_tags!r}")
        if self.kind not in ("label", "generate"):
            raise ValueError(f"kind must be 'label' or 'generate', got {self.kind!r}")
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
        want = [s for s in ("prompt", "completion") if s in slots]
        for filled in ways_to_fill(slots):
            if [s for s in _MARK.findall(_render_body(self.body, filled)) if s in want] != want:
                empty = [s for s, full in filled if not full]
                raise ValueError(
                    "{{ prompt }} must come once, before {{ completion }} once, so that prefixes are shared"
                    + (f"; without {empty} that is not so" if empty else "")
                )

    def with_thoughts(
        self,
        reasoning: Literal["strip", "keep", "only"] | None = None,
        tags: Sequence[tuple[str, str]] = (),
        *,
        keep_unfinished: bool = False,
    ) -> JudgePrompt:
        """The same prompt with another way to treat thoughts; see the attributes.

        Raises:
            ValueError: values that there are not.
        """
        made = replace(
            self,
            reasoning=self.reasoning if reasoning is None else reasoning,
            thought_tags=(*self.thought_tags, *((str(o), str(c)) for o, c in tags)),
            unfinished="keep" if keep_unfinished else self.unfinished,
        )
        made._validate()
        return made

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the values a row must supply, sorted."""
        return slots_of(self.body)

    @property
    def hash(self) -> str:
        """Content hash of everything that changes what the judge reads or how it is read."""
        content = {k: getattr(self, k) for k in ("kind", "system", "body", "prefill", "scale", "pattern", "optional")}
        content["labels"] = self.labels.key if self.labels else None
        thoughts = (self.reasoning, self.thought_tags, self.unfinished)
        if thoughts != ("strip", (), "none"):
            content["thoughts"] = thoughts
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def render_all(self, rows: Sequence[Mapping[str, Any]]) -> list[Dialogue]:
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

    def render(self, row: Mapping[str, Any]) -> Dialogue:
        """Fill the slots of one row.

        Args:
            row: slot name -> string or list of chat messages (`prompt`, `completion`, dataset columns). Empty text is
                rendered as it is.

        Returns:
            The judge's dialogue. Untrusted text stays in segments of its own: nothing of it meets a template engine.

        Raises:
            ValueError: a slot is missing or is neither text nor messages.
        """
        values, problem = {}, None
        for slot in self.slots:
            value = row.get(slot)
            if value is None and slot not in self.optional:
                raise ValueError(
                    f"prompt {self.name!r} needs {slot!r}, which this row lacks (has {sorted(map(str, row))})"
                )
            if slot in _REPLIES or (slot == "prompt" and not isinstance(value, str)):
                value, problem = self._without_thoughts(value, slot, problem)
            try:
                values[slot] = to_segments(value if value is not None else "", slot)
            except RecursionError as err:
                raise ValueError(f"{slot!r} is nested too deeply to be text or messages") from err
        filled = tuple((s, any(seg.text for seg in values[s])) for s in self.slots)
        segments: list[Segment] = []
        for i, part in enumerate(_MARK.split(_render_body(self.body, filled))):
            segments += values[part] if i % 2 else [Segment(part)] if part else []
        turns = [Turn("system", (Segment(self.system.strip()),))] if self.system.strip() else []
        return Dialogue((*turns, Turn("user", tuple(segments))), self.prefill, self.kind == "generate", problem)

    def _without_thoughts(self, value: object, slot: str, problem: str | None) -> tuple[Any, str | None]:
        """A reply, or the replies in a dialogue that is a prompt, as `reasoning` wants it, and why it has no score."""
        if slot == "prompt":
            how = "keep" if self.reasoning == "keep" else "strip"
            return set_aside(value, how, self.thought_tags)[0], problem
        made, finished = set_aside(value, self.reasoning, self.thought_tags)
        if finished:
            return made, problem
        return value, problem if self.unfinished == "keep" else UNFINISHED


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Mark:
    """Stands in for a slot's text while a template renders: prints as a marker, is true when the text is not empty."""

    def __init__(self, slot: str, filled: bool) -> None:
        self.slot, self.filled = slot, filled

    def __str__(self) -> str:
        return f"\ue000{self.slot}\ue001"

    def __bool__(self) -> bool:
        return self.filled


@functools.lru_cache(maxsize=256)
def _render_body(body: str, filled: tuple[tuple[str, bool], ...]) -> str:
    return ENV.from_string(body).render({s: _Mark(s, f) for s, f in filled}).strip()


def _check_types(raw: dict[str, Any]) -> None:
    """Every value of a prompt file is of the type that its key wants."""
    for key in ("kind", "body"):
        if not isinstance(raw.get(key), str):
            raise ValueError(f"key {key!r} is missing or not text")
    for key in ("name", "source", "system", "prefill", "pattern"):
        if not isinstance(raw.get(key, ""), str):
            raise ValueError(f"key {key!r} must be text, got {type(raw[key]).__name__}")
    if not isinstance(raw.get("completion", True), bool):
        raise ValueError(f"key 'completion' must be true or false, got {type(raw['completion']).__name__}")
    optional = raw.get("optional")
    if optional is not None and not (isinstance(optional, list) and all(isinstance(s, str) for s in optional)):
        raise ValueError("key 'optional' must be a list of slot names")
    tags = raw.get("thought_tags") or []
    if not isinstance(tags, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in tags):
        raise ValueError("key 'thought_tags' must be a list of pairs: an opening and a closing tag")


def _word(value: Any) -> str:
    """A label or spelling; YAML reads a bare yes or no as a truth value, which nobody means here."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"YAML reads a bare yes, no or null as {value!r}; quote labels and spellings")
    if not isinstance(value, str | int | float):
        raise ValueError(f"labels and spellings must be text, got {type(value).__name__}; quote them")
    return str(value)


def prompt_folder() -> Path:
    """Folder of the shipped prompts: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    inside = package / "_prompts"
    return inside if inside.is_dir() else package.parent / "prompts"
