"""What lies under benchmarks/results says which command made it, and at which commit."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from latent_rewards.files.runs import command, machine, provenance

ROOT = Path(__file__).parents[2]
RESULTS: dict[str, list[Path]] = defaultdict(list)
for _path in sorted((ROOT / "benchmarks/results").iterdir()):
    if _path.suffix in (".md", ".json"):
        RESULTS[_path.stem].append(_path)


@pytest.mark.parametrize("name", RESULTS)
def test_names_its_command_and_commit(name: str) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in RESULTS[name])
    made = re.search(r"python -m (?P<module>(benchmarks|recipes)\.\w+)|latent-rewards (evaluate|score|probe)\b", text)
    assert made, "no command"
    if module := made["module"]:
        found = ROOT / module.replace(".", "/")
        assert found.with_suffix(".py").is_file() or found.is_dir(), f"{module} is not there"
    assert re.search(r"(commits?\W+|recorded in |\bat )(\W*\w+ in )?[0-9a-f]{7}\b", text, re.IGNORECASE), "no commit"


def test_every_picture_has_figures() -> None:
    pictures = [p for p in (ROOT / "benchmarks/results").glob("*.png")]
    alone = [p.name for p in pictures if not any(p.stem.startswith(name) for name in RESULTS)]
    assert pictures and not alone, f"no file of results for {alone}"


def test_a_command_is_shown_as_it_can_be_typed() -> None:
    words = ["--data", "/home/me/rows.jsonl/", "--python", "vllm=/env/vllm/bin/python", "Qwen/Qwen3-8B", "runs/x"]
    assert command("benchmarks.x", words) == (
        "python -m benchmarks.x --data <folder>/rows.jsonl --python vllm=<folder>/bin/python Qwen/Qwen3-8B runs/x"
    )
    judge = "{model: /home/me/Qwen3-8B, dtype: bfloat16}"
    assert command("recipes.x", ["--judge", judge]) == (
        "python -m recipes.x --judge '{model: <folder>/Qwen3-8B, dtype: bfloat16}'"
    )
    assert set(provenance("benchmarks.x", [])) == {"command", "commit", "machine"} and "core" in machine()
