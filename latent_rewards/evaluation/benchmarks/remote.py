"""Rows of public data sets: from the model hub, or from a file of a GitHub repository at a fixed commit."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from latent_rewards.engine.embedded import cache_folder
from latent_rewards.files.types import NumberedRow


@dataclass(frozen=True)
class Hub:
    """Splits of a hub data set. Without `revision` the newest commit is taken; the report names the one that was."""

    repo: str
    splits: tuple[str, ...]
    config: str | None = None
    revision: str | None = None

    def at(self, revision: str | None) -> Hub:
        """The same at another revision."""
        return replace(self, revision=revision) if revision else self

    def resolved(self) -> Hub:
        """The same with the commit that `revision` stands for (asks the hub)."""
        from huggingface_hub import HfApi

        return replace(self, revision=HfApi().dataset_info(self.repo, revision=self.revision).sha)

    def rows(self) -> Iterator[NumberedRow]:
        """(split, row from 1, row)."""
        from datasets import load_dataset

        for split in self.splits:
            data = load_dataset(self.repo, self.config, split=split, revision=self.revision)
            yield from ((f"{self.repo}:{split}", i, row) for i, row in enumerate(data, 1))

    def __str__(self) -> str:
        return f"https://huggingface.co/datasets/{self.repo}@{self.revision or 'main'}"


@dataclass(frozen=True)
class GitHub:
    """A JSON or JSON Lines file of a GitHub repository at a commit, kept in the cache folder."""

    repo: str
    commit: str
    path: str

    def at(self, revision: str | None) -> GitHub:
        """The same at another commit.

        Raises:
            ValueError: no name of a commit; it becomes part of a path and of an address.
        """
        if revision and not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]*", revision):
            raise ValueError(f"{revision!r} is no commit, tag or branch of {self.repo}")
        return replace(self, commit=revision) if revision else self

    def resolved(self) -> GitHub:
        """Itself: a commit is fixed."""
        return self

    def rows(self) -> Iterator[NumberedRow]:
        """(path, row from 1, row)."""
        text = self._file().read_text(encoding="utf-8")
        data = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.split("\n") if x]
        yield from ((self.path, i, row) for i, row in enumerate(data, 1))

    def _file(self) -> Path:
        kept = cache_folder() / "benchmarks" / self.repo / self.commit / self.path
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            url = f"https://raw.githubusercontent.com/{self.repo}/{self.commit}/{self.path}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                kept.with_suffix(".part").write_bytes(answer.read())
            kept.with_suffix(".part").rename(kept)
        return kept

    def __str__(self) -> str:
        return f"https://github.com/{self.repo}/blob/{self.commit}/{self.path}"
