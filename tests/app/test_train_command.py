"""`bedside train`: the command runs a stage, draws its log and keeps clear of the evaluation sets."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from app.cli import app
from app.errors import InputError
from app.evaluation.held_out import evaluation_texts
from app.evaluation.training_plots import draw_run, read_log
from model.train.config import load_config
from tests.model.training import TINY

FILES = (
    "medquad/medquad_qa", "pubmedqa/pqal_dev500", "aci_bench/encounters", "mts_dialog/train", "mts_dialog/val",
    "mts_dialog/test1", "primock57/consultations", "ccda/rendered", "bentsao_zh/qa",
    "bentsao_zh/liver_cancer_multiturn",
)  # fmt: skip
CONFIGS = Path(__file__).resolve().parents[2] / "model" / "train" / "configs"


def test_the_words_of_every_evaluation_set_are_known(tmp_path: Path) -> None:
    texts = list(evaluation_texts(tmp_path))
    assert any("mean aortic gradient of 42 mmHg" in text for text in texts)  # eval grounded
    assert "What dose of apixaban is she taking?" in texts  # the probes
    assert len(texts) > 1500


def test_a_stage_runs_and_its_log_is_drawn(tmp_path: Path) -> None:
    settings = {
        "model": TINY, "output_dir": str(tmp_path / "run"), "data_dir": str(tmp_path / "data"), "num_pools": 1,
        "groups_per_pool": 4, "max_sequence_tokens": 900, "num_tokenizer_groups": 40, "threads": 1,
        "sample_every_pools": 1,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["train", "sft", "--config", str(path), "--max-steps", "1"]
    assert isinstance(CliRunner().invoke(app, command).exception, InputError)  # no data_dir
    for name in FILES:  # the public texts are a file each; without any, records are invented
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl.xz").write_bytes(lzma.compress(b""))
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "model.safetensors").is_file()
    page = (tmp_path / "run" / "training.html").read_text(encoding="utf-8")
    assert "Busiest expert" in page
    assert "<svg" in page


def test_a_run_without_a_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train first"):
        read_log(tmp_path / "log.jsonl")


def test_the_page_warns_and_escapes() -> None:
    entries = [
        {"step": 1, "reward": 0.2, "held_agreement": 0.9, "kl": 0.0, "max_load": 1.5},
        {"pool": 1, "question": "Why <b>?", "wanted": "a", "said": "<script>"},
    ]
    page = draw_run("x", entries, "Look here.")
    assert "Look here." in page
    assert "<script>" not in page
    assert "Divergence" in page


@pytest.mark.parametrize("stage", ["cpt", "sft", "grpo"])
def test_the_shipped_stages_are_of_one_shape_and_follow_each_other(stage: str) -> None:
    config, first = load_config(CONFIGS / f"{stage}.yaml"), load_config(CONFIGS / "cpt.yaml")
    before = {"cpt": None, "sft": "cpt", "grpo": "sft"}[stage]
    assert config.model == first.model
    assert config.model.num_nextn_predict_layers == 1
    assert config.model.context_length >= 8192
    assert (config.init_from.name if config.init_from else None) == before
