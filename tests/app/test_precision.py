"""The clinical regression report: what it finds in broken weights, what it says of two answers, how it is shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from app.cli import app as cli
from app.errors import InputError
from app.evaluation.changes import changed_kinds, is_changed, verdict_of
from app.evaluation.gate import GATE_FILE, MEASURES, load_gate
from app.evaluation.precision import compare_checkpoints
from app.evaluation.report import HTML_NAME, JSON_NAME, read_report, save_report
from app.evaluation.report_page import render_page
from contracts import Verdict
from model.checkpoint import load_model, save_checkpoint, weights_sha256
from model.config import CheckpointError
from model.generator import EMBEDDED
from model.modeling import BailingMoeV2ForCausalLM
from safety.checker import RuleSafetyChecker

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
NUM_ITEMS = 8


EXPERT_STD = 0.001


def scale_expert(model: BailingMoeV2ForCausalLM) -> None:
    model.model.layers[2].mlp.experts.down_proj[5] *= 4


def permute_router(model: BailingMoeV2ForCausalLM) -> None:
    weight = model.model.layers[3].mlp.gate.weight
    weight.copy_(weight.roll(1, 0))


def write_checkpoint(folder: Path, change: Callable[[BailingMoeV2ForCausalLM], None] | None = None) -> Path:
    """The embedded model in f32, with routed experts that say a little (its own are silent), changed; a folder of its
    own."""
    folder.mkdir()
    for name in TEXT_FILES:
        shutil.copy(EMBEDDED / name, folder)
    model = load_model(EMBEDDED, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("experts.down_proj"):
                parameter.normal_(std=EXPERT_STD, generator=generator)
        if change:
            change(model)
    save_checkpoint(model, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    return write_checkpoint(folder / "reference")


@pytest.fixture(scope="module")
def scaled(folder: Path) -> Path:
    return write_checkpoint(folder / "scaled", scale_expert)


@pytest.fixture(scope="module")
def failed(reference: Path, scaled: Path) -> dict[str, Any]:
    return compare_checkpoints(reference, scaled, NUM_ITEMS)


@pytest.fixture(scope="module")
def passed(reference: Path) -> dict[str, Any]:
    return compare_checkpoints(reference, reference, NUM_ITEMS)


def broken_limits(report: dict[str, Any]) -> set[str]:
    return {check["measure"] for check in report["gate"]["checks"] if not check["passed"]}


# --- what it finds ----------------------------------------------------------------------------------------------


def test_the_same_weights_pass_with_nothing_changed(passed: dict[str, Any], reference: Path) -> None:
    assert passed["gate"]["passed"]
    assert passed["gate"]["named_layers"] == []
    assert (passed["kl"]["max"], passed["top1_agreement"], passed["answers"]["changed"]) == (0, 1, 0)
    assert passed["figures"]["perplexity_ratio"] == 1
    assert sum(passed["kl"]["counts"]) == passed["tokens"]["scored"]
    assert passed["candidate"]["weights_sha256"] == weights_sha256(reference)
    assert (passed["candidate"]["precision"], passed["probes"]["items"]) == ("f32", NUM_ITEMS)


def test_what_the_same_weights_are_stored_in_changes_nothing(tmp_path: Path) -> None:
    stored = tmp_path / "f32"
    stored.mkdir()
    for name in TEXT_FILES:
        shutil.copy(EMBEDDED / name, stored)
    save_checkpoint(load_model(EMBEDDED, torch.float32), stored, torch.float32)
    report = compare_checkpoints(EMBEDDED, stored, 4)  # the one holds bf16
    assert (report["kl"]["max"], report["answers"]["changed"]) == (0, 0)


def test_one_expert_scaled_by_four_fails_and_is_named(failed: dict[str, Any]) -> None:
    assert not failed["gate"]["passed"]
    assert "expert_error" in broken_limits(failed)
    (named,) = failed["gate"]["named_layers"]
    assert named["layer"] == 2
    assert "expert 5 is damaged" in named["reason"]


def test_one_permuted_router_fails_and_is_named(reference: Path, folder: Path) -> None:
    report = compare_checkpoints(reference, write_checkpoint(folder / "permuted", permute_router), NUM_ITEMS)
    assert {"experts_overlap", "router_overlap"} <= broken_limits(report)
    (named,) = report["gate"]["named_layers"]
    assert named["layer"] == 3
    assert "router" in named["reason"]


def test_weights_that_give_no_numbers_fail_and_are_named(reference: Path, folder: Path) -> None:
    def spoil(model: BailingMoeV2ForCausalLM) -> None:
        model.model.layers[1].mlp.experts.down_proj[0] = float("nan")

    report = compare_checkpoints(reference, write_checkpoint(folder / "spoiled", spoil), 2)
    assert {"kl_mean", "expert_error", "perplexity_ratio"} <= broken_limits(report)
    assert report["gate"]["named_layers"][0]["layer"] == 1
    assert json.loads(json.dumps(report, allow_nan=False))["figures"]["kl_mean"] is None
    assert "not a number" in render_page(report)


def test_a_folder_that_cannot_be_compared_is_refused_at_once(reference: Path, tmp_path: Path) -> None:
    def never(*_: object) -> None:
        pytest.fail("work was begun")

    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        compare_checkpoints(reference, tmp_path, on_progress=never)
    cut = Path(shutil.copytree(reference, tmp_path / "cut"))
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(10_000_000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        compare_checkpoints(reference, cut, on_progress=never)
    shutil.copy(reference / "model.safetensors", cut)
    config = json.loads((cut / "config.json").read_text()) | {"num_experts": 32}
    (cut / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="different models"):
        compare_checkpoints(reference, cut, on_progress=never)
    with pytest.raises(ValueError, match="at least 1"):
        compare_checkpoints(reference, reference, 0, never)


def test_another_tokenizer_is_refused(reference: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(reference, tmp_path / "other"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] = "Now: " + config["chat_template"]
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="different tokens"):
        compare_checkpoints(reference, other, 1)


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference_answer", "candidate_answer", "kinds"),
    [
        ("Apixaban 5 mg twice daily. [1]", "Apixaban 5 mg twice daily. [2]", ()),
        ("Apixaban 5 mg twice daily.", "Take apixaban, 5 mg two times a day.", ()),
        ("Apixaban 5 mg twice daily. [1]", "Apixaban 2.5 mg twice daily. [1]", ("number",)),
        ("Digoxin 125 micrograms.", "Digoxin 125 mg.", ("number",)),
        ("Apixaban 5 mg twice daily.", "Apixaban 5 mg once daily.", ("number",)),
        ("Started on 3 March 2024.", "Started on 4 March 2024.", ("number",)),
        ("Rivaroxaban 20 mg.", "Apixaban 20 mg.", ("drug",)),
        ("She denies chest pain.", "She has chest pain.", ("negation",)),
        ("No known allergies.", "Known allergies.", ("negation",)),
        ("Stop metformin.", "Do not stop metformin.", ("negation",)),
        ("The passages do not say.", "Apixaban 5 mg.", ("number", "drug", "abstention")),
        ("每日一次阿哌沙班5毫克。", "每日两次阿哌沙班5毫克。", ("number",)),
        ("二甲双胍500毫克。", "格列美脲500毫克。", ("drug",)),
        ("无药物过敏。", "有药物过敏。", ("negation",)),
        ("The patient has asthma.", "The patient has bronchitis.", ()),
    ],
)
def test_what_changed_between_two_answers(reference_answer: str, candidate_answer: str, kinds: tuple[str, ...]) -> None:
    assert is_changed(reference_answer, candidate_answer)
    assert changed_kinds(reference_answer, candidate_answer) == kinds
    assert changed_kinds(candidate_answer, reference_answer) == kinds


def test_white_space_is_no_change() -> None:
    assert not is_changed("Apixaban 5 mg.\n", " Apixaban  5 mg.")


def test_a_verdict_is_of_the_answer_against_its_passage() -> None:
    checker, passage = RuleSafetyChecker(), "She takes apixaban 5 mg twice daily."
    assert verdict_of("Apixaban 5 mg twice daily. [1]", passage, checker) is Verdict.ALLOW
    assert verdict_of("Apixaban 50 mg twice daily. [1]", passage, checker) is Verdict.HOLD


# --- the gate ---------------------------------------------------------------------------------------------------


def test_every_limit_of_the_gate_says_why() -> None:
    gate = load_gate()
    assert {threshold.measure for threshold in gate.thresholds} == set(MEASURES)
    assert all(len(threshold.why) > 40 and threshold.unit for threshold in gate.thresholds)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_most: 0.05", "at_least: 0.05\n  at_most: 0.05", "give one number"),
        ("at_most: 0.05", "at_most: low", "give one number"),
        ("measure: kl_mean", "measure: kl_mode", "measure must be one of"),
        ("measure: kl_mean", "measure: kl_p99", "kl_mean must have exactly one threshold"),
        ("unit: nats a token", "units: nats a token", "unknown key 'units'"),
        ("unit: nats a token", "unit: ''", "unit must be a text"),
    ],
)
def test_an_odd_gate_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(GATE_FILE.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_gate(path)


# --- files and shell --------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Addresses that a page would fetch, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {v}" for k, v in attrs if k in ("src", "href") or tag in ("script", "link", "iframe")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_says_what_failed(failed: dict[str, Any]) -> None:
    text = render_page(failed)
    page = _Page(text)
    assert [address for address in page.fetched if not re.search(r" #", address)] == []
    assert "url(http" not in text
    assert text.count("<svg") == 4
    assert "Layer 2: expert 5 is damaged" in " ".join(page.words.split())
    assert failed["candidate"]["weights_sha256"] in page.words
    assert f"{NUM_ITEMS} of {failed['probes']['of']} items only" in page.words


def test_an_answer_cannot_become_markup(passed: dict[str, Any]) -> None:
    change = dict.fromkeys(("id", "category", "question", "passage", "source", "expected", "reference"), "x")
    change |= {"candidate": "<script>1</script>", "kinds": [], "reference_verdict": "", "candidate_verdict": ""}
    assert "<script>" not in render_page(passed | {"changes": [change]})


def test_the_command_saves_beside_the_weights_and_tells_by_its_status(reference: Path, scaled: Path) -> None:
    runner = CliRunner()
    arguments = ["eval", "precision", "--reference", str(reference), "--limit", "1", "--json"]
    result = runner.invoke(cli, [*arguments, "--candidate", str(scaled)])
    assert result.exit_code == 1
    assert "layer 2: expert 5" in result.stdout
    assert "candidate, answering: item 1 of 1" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == read_report(scaled)
    assert (scaled / HTML_NAME).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert runner.invoke(cli, [*arguments, "--candidate", str(reference)]).exit_code == 0


def test_a_folder_that_cannot_be_written_is_named_before_any_work(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["--reference", str(reference), "--candidate", str(reference), "--output", str(tmp_path / "file")]
    result = CliRunner().invoke(cli, ["eval", "precision", *arguments])
    assert isinstance(result.exception, InputError)
    assert "--output" in str(result.exception)


def test_a_report_of_another_version_is_not_read(passed: dict[str, Any], tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    save_report(passed | {"format": 0}, "", tmp_path)
    with pytest.raises(InputError, match="another version"):
        read_report(tmp_path)
    (tmp_path / JSON_NAME).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path)


# --- the Model screen -------------------------------------------------------------------------------------------


def show(checkpoint: Path, weights_sha256: str) -> AppTest:
    """The section, for loaded weights of this hash whose folder this is."""

    def draw(folder: str, digest: str) -> None:
        from pathlib import Path

        from app.ui.precision_report import draw_precision

        draw_precision(Path(folder), digest)

    app = AppTest.from_function(draw, args=(str(checkpoint), weights_sha256), default_timeout=30).run()
    assert not app.exception, app.exception
    return app


def test_the_screen_says_that_there_is_no_report(tmp_path: Path) -> None:
    app = show(tmp_path, "0" * 64)
    assert "No precision report" in app.info[0].value
    assert f"--candidate {tmp_path}" in app.code[0].value


def test_the_screen_shows_the_report_of_these_weights(passed: dict[str, Any], tmp_path: Path) -> None:
    save_report(passed, "", tmp_path)
    app = show(tmp_path, passed["candidate"]["weights_sha256"])
    assert "The gate was passed." in app.success[0].value
    assert passed["reference"]["weights_sha256"][:16] in app.success[0].value
    assert not app.warning
    assert {"Same likeliest token": "100.0%"}.items() <= {metric.label: metric.value for metric in app.metric}.items()
    assert len(app.get("vega_lite_chart")) == 2
    assert "word for word" in app.expander[0].markdown[0].value


def test_the_screen_shows_a_failure_its_layer_and_the_changed_answers(failed: dict[str, Any], tmp_path: Path) -> None:
    change = {"id": "en-dose-001", "question": "Dose?", "kinds": ["number"], "expected": "5 mg"}
    save_report(failed | {"changes": [change | {"reference": "5 mg", "candidate": "50 mg"}]}, "", tmp_path)
    app = show(tmp_path, failed["candidate"]["weights_sha256"])
    assert "was not passed" in app.error[0].value
    assert "Layer 2: expert 5" in app.error[0].value
    assert app.expander[0].label == "1 answer changed"
    assert {"5 mg", "50 mg"} <= {markdown.value for markdown in app.expander[0].markdown}


def test_the_screen_says_that_a_report_is_of_other_weights(passed: dict[str, Any], tmp_path: Path) -> None:
    save_report(passed, "", tmp_path)
    assert "not of these weights" in show(tmp_path, "0" * 64).warning[0].value


def test_the_screen_says_that_a_report_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / JSON_NAME).write_text("{")
    assert "cannot be read" in show(tmp_path, "0" * 64).error[0].value
