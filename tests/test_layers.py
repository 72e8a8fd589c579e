"""Who may import whom: read from the source with ast, so that an arrow pointing upwards cannot land."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS: dict[str, set[str]] = {  # layer -> layers it may import besides itself
    "contracts": set(),
    "model": {"contracts"},
    "retrieval": {"contracts"},
    "safety": {"contracts"},
    "app": {"contracts", "model", "retrieval", "safety"},
    "pages": {"contracts", "app"},
    "streamlit_app": {"contracts", "app", "pages"},
}

DOORS: dict[str, tuple[str, ...]] = {  # third-party package -> the only places that may import it
    "streamlit": ("streamlit_app.py", "pages/", "app/ui/"),
    "chromadb": ("retrieval/index.py",),
    "pypdfium2": ("retrieval/reading/pdf", "retrieval/reading/hidden_text.py"),
    "rapidocr": ("retrieval/reading/ocr.py",),
    "llguidance": ("model/grammar.py", "model/grammar_trial.py"),
    "sqlalchemy": ("app/store/", "app/doctor.py"),
    "alembic": ("app/store/",),
    "triton": tuple(f"model/kernels/{p.name}/" for p in (ROOT / "model/kernels").iterdir() if p.is_dir()),
}

# model/ must also import where there is nothing but these.
MODEL_NEEDS = {"torch", "numpy", "safetensors", "tokenizers", "transformers", "triton", "jinja2", "contracts", "model"}
MODEL_EXTRAS = {"model/chat_model.py": {"langchain_core"}, "model/train/": {"yaml"}}


def _sources() -> list[str]:
    names = ["contracts.py", "streamlit_app.py"]
    for folder in ("app", "model", "retrieval", "safety", "pages"):
        names += [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).rglob("*.py"))]
    return names


def _imports(name: str, top_level_only: bool = False) -> set[str]:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the layer"
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("name", _sources())
def test_imports_point_downwards(name: str) -> None:
    layer = name.split("/")[0].removesuffix(".py")
    upwards = (_imports(name) & set(LAYERS)) - LAYERS[layer] - {layer}
    assert not upwards, f"{name} may not import {', '.join(sorted(upwards))}"


@pytest.mark.parametrize("name", _sources())
def test_each_dependency_has_one_door(name: str) -> None:
    for package in _imports(name) & set(DOORS):
        assert name.startswith(DOORS[package]), f"{name} imports {package}; its door is {', '.join(DOORS[package])}"


@pytest.mark.parametrize("name", [name for name in _sources() if name.startswith("model/")])
def test_model_imports_with_little(name: str) -> None:
    allowed = MODEL_NEEDS | set(sys.stdlib_module_names)
    for place, extra in MODEL_EXTRAS.items():
        if name.startswith(place):
            allowed |= extra
    assert _imports(name, top_level_only=True) <= allowed


def test_contracts_needs_the_standard_library_only() -> None:
    assert _imports("contracts.py") <= set(sys.stdlib_module_names)
