"""The locks: whole, exact, and in step with what the source imports."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-train.txt", "requirements-weights.txt")
OURS = {"app", "model", "retrieval", "safety", "contracts", "pages", "bench"}
OPTIONAL = {"triton"}  # only where there is a GPU


def _lines(name: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line]


def _names(name: str) -> set[str]:
    return {_normalise(re.split(r"[\[=]", line)[0]) for line in _lines(name) if not line.startswith("-r")}


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(folders: tuple[str, ...]) -> set[str]:
    modules: set[str] = set()
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in [*files, ROOT / "contracts.py", ROOT / "streamlit_app.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    return modules - OURS - set(sys.stdlib_module_names) - OPTIONAL


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_an_exact_pin(lock: str) -> None:
    loose = [line for line in _lines(lock) if not re.fullmatch(r"[A-Za-z0-9._\[\]-]+==\S+|-r \S+", line)]
    assert not loose


def test_what_the_program_imports_is_in_the_run_time_lock() -> None:
    distributions = packages_distributions()
    locked = _names("requirements.txt")
    missing = {
        module
        for module in _imported(("app", "model", "retrieval", "safety", "pages"))
        if not {_normalise(name) for name in distributions.get(module, [module])} & locked
    }
    assert not missing


def test_the_customers_fixed_parts_are_there() -> None:
    assert {"streamlit", "torch", "transformers", "bitsandbytes", "langchain", "chromadb"} <= _names("requirements.txt")
    assert "torch==2.13.0" in _lines("requirements.txt")
    assert "pytest" in _names("requirements-dev.txt")
