"""The decoder must run where only torch, numpy, safetensors and tokenizers are installed, and import quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("transformers", "langchain_core", "chromadb", "streamlit", "sqlalchemy", "app", "retrieval", "safety")


@pytest.mark.parametrize("module", ["model.generator", "model.logits", "model.fake"])
def test_module_imports_nothing_it_does_not_need(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {module != 'model.fake'}"
    assert done.stderr == ""
