"""The README and the pages of docs/, taken apart: code blocks, commands, links, names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
LINKED = [*PAGES, ROOT / "benchmarks" / "README.md"]
PROGRAMS = "latent-rewards|python|make|pip|trl|accelerate"


def name(page: Path) -> str:
    """Path from the root, also the id of a test."""
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def every_text() -> str:
    return "\n".join(read(page) for page in PAGES)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in fences(page) if found == language]


def imports(page: Path) -> list[str]:
    """The imports of a page's sessions."""
    return re.findall(r"^>>> ((?:from|import) .*)$", "".join(blocks(page, "pycon")), re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", read(page), re.MULTILINE | re.DOTALL)
    assert found, f"{name(page)} has no section {title!r}"
    return found[1]


def _words(line: str) -> list[str]:
    """Words of a command, without the settings of the environment before it."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's bash blocks."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := _words(line))]


def mentions(page: Path) -> list[list[str]]:
    """The commands that stand in the text as code, some of them cut short."""
    found = [_words(code) for code in re.findall(r"`([^`\n]+)`", prose(page)) if re.search(rf"\b({PROGRAMS}) ", code)]
    return [[word for word in words if word != "..."] for words in found if words[0] in PROGRAMS.split("|")]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def links(page: Path) -> list[str]:
    """Targets of links and pictures that lead to a file or a heading."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def tree() -> list[str]:
    """Path of every line of the README's tree."""
    folders: list[str] = []
    paths = []
    for line in blocks(README, "text")[0].splitlines():
        word = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [word]
        paths.append("".join(folders[: depth + 1]))
    return paths


def paths() -> list[str]:
    """Every path below a folder of the project that a page names."""
    roots = "configs|recipes|prompts|benchmarks|latent_rewards|tests|requirements|docs"
    found = re.findall(rf"(?<![\w./-])(?:{roots})/[\w./-]*", every_text())
    return sorted({path.rstrip(".") for path in found if not path.endswith("...")})
