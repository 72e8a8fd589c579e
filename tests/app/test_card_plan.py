"""`bedside doctor --plan`: for the checkpoint that is set, from its headers or from config.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.card_plan import plan_for
from app.cli import app
from app.config import EMBEDDED_CHECKPOINT, Settings
from app.errors import InputError
from bench.synthetic import PRESETS
from model.config import ModelConfig
from model.offload_plan import GIB
from model.safetensors_file import SafetensorsFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of which there is config.json alone."""
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["antangelmed"].to_hf()), encoding="utf-8")
    return tmp_path


def test_the_command_prints_where_everything_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEDSIDE_CHECKPOINT", str(folder))
    result = CliRunner().invoke(app, ["doctor", "--plan", "80GB", "--format", "int4", "--json"])
    assert result.exit_code == 0, result.output
    *lines, last = result.output.splitlines()
    assert "all routed experts" in lines[1]
    assert "a forecast" in lines[3]
    assert json.loads(last)["hot_experts"] == 256
    small = CliRunner().invoke(app, ["doctor", "--plan", "1GB@100", "--format", "bf16"])
    assert (small.exit_code, "does not fit" in small.output) == (1, True)


def test_a_checkpoints_own_bytes_are_what_is_placed() -> None:
    plan = plan_for(Settings(checkpoint=EMBEDDED_CHECKPOINT), "24GB")
    drafts = f"model.layers.{ModelConfig.from_hf(EMBEDDED_CHECKPOINT).num_hidden_layers}."  # stay where they are
    with SafetensorsFile(EMBEDDED_CHECKPOINT / "model.safetensors") as file:
        stored = sum(info.num_bytes for name, info in file.tensors.items() if not name.startswith(drafts))
    assert plan.is_whole
    assert plan.parts.total == pytest.approx(stored, rel=0.01)
    assert plan.context <= 32768


def test_a_baseline_says_which_experts_are_hot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skewed = [0.5, *[0.5 / 255] * 255]
    monkeypatch.setattr("app.card_plan.read_baseline", lambda *_: {1: skewed, 2: skewed[::-1]})
    plan = plan_for(Settings(checkpoint=folder), "24GB", form="int4")
    assert plan.hit_rate == pytest.approx(0.5 + (plan.hot_experts - 1) * 0.5 / 255)
    assert plan.card_bytes <= 24 * GIB


@pytest.mark.parametrize(("card", "form"), [("7GB", "int4"), ("24GB", "int3"), ("24GB", "auto")])
def test_what_cannot_be_planned_is_bad_input(folder: Path, card: str, form: str) -> None:
    with pytest.raises(InputError, match=r"card known|format is|neither"):
        plan_for(Settings(checkpoint=folder), card, form=form)
