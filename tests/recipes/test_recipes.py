"""Recipes read alone: what two of them share is in the package."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "recipes"
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
RECIPES = [m for m in MODULES if '__name__ == "__main__"' in (FOLDER / f"{m}.py").read_text()]


def imported(module):
    """Modules of recipes/ that a module imports."""
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "recipes":
            names = node.module.split(".")[1:]
            yield from names or (a.name for a in node.names)


def owner(module):
    """The recipe that a module belongs to: itself, or what its name begins with."""
    return max((r for r in RECIPES if module == r or module.startswith(f"{r}_")), key=len)


@pytest.mark.parametrize("module", MODULES)
def test_no_recipe_imports_another(module):
    others = {i for i in imported(module) if owner(i) != owner(module)}
    assert len(RECIPES) == 9 and not others, f"{module} imports {others}"
