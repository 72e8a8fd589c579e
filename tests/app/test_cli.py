"""The command line: one JSON object last, one sentence for bad input, exit status 2 for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[1] / "model" / "golden" / "c_mtp"
LETTER = "Medication on discharge:\n\nApixaban 5 mg twice daily.\nBisoprolol 2.5 mg once daily.\n"


def bedside(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=root, timeout=240, check=False)


def last_json(result: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_text(LETTER, encoding="utf-8")
    return path


def test_ask_gives_claims_whose_quotes_stand_at_the_stated_place(letter: Path) -> None:
    answer = last_json(bedside("ask", "What is the apixaban dose?", "--document", letter, "--json"))
    assert set(answer) >= {"answer", "claims", "coverage", "verdict", "findings", "usage", "model"}
    pages = last_json(bedside("parse", letter, "--json"))["pages"]
    cited = [c for claim in answer["claims"] for c in claim["citations"]]  # type: ignore[attr-defined, index]
    assert cited
    for citation in cited:
        page = pages[citation["page"] - 1]["text"]  # type: ignore[index]
        assert page[citation["start"] : citation["end"]] == citation["quote"]


def test_ask_on_a_real_record_cites_verbatim(shared: Path) -> None:
    record = shared / "clinical_docs" / "note_plain.pdf"
    answer = last_json(bedside("ask", "What did the CT scan show?", "--document", record, "--json"))
    pages = {p["page"]: p["text"] for p in last_json(bedside("parse", record, "--json"))["pages"]}  # type: ignore[attr-defined]
    cited = [c for claim in answer["claims"] for c in claim["citations"]]  # type: ignore[attr-defined, index]
    assert any("3 cm left ovarian mass" in citation["quote"].replace("\n", " ") for citation in cited)
    assert all(pages[c["page"]][c["start"] : c["end"]] == c["quote"] for c in cited)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.pdf", b"", "empty"),
        ("lies.pdf", b"PK\x03\x04 not a pdf at all", "lies.pdf"),
        ("cut.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog", "cut.pdf"),
    ],
)
def test_a_bad_file_is_one_sentence_and_status_two(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for command in (["parse", path], ["ask", "Why?", "--document", path]):
        result = bedside(*command)
        assert result.returncode == 2
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("patient", "words"),
    [
        ('{"age_year": 70}', "age_year"),
        ('{"weight_kg": 9000}', "weight_kg"),
        ('{"pregnant": "yes"}', "pregnant"),
        ("[]", "object"),
        ("{", "JSON"),
    ],
)
def test_a_bad_patient_names_the_field(tmp_path: Path, letter: Path, patient: str, words: str) -> None:
    path = tmp_path / "patient.json"
    path.write_text(patient, encoding="utf-8")
    result = bedside("ask", "Why?", "--document", letter, "--patient", path)
    assert result.returncode == 2
    assert words in result.stderr


def test_ask_with_only_spaces_is_refused(letter: Path) -> None:
    result = bedside("ask", "   ", "--document", letter)
    assert result.returncode == 2
    assert "empty" in result.stderr


def test_check_answers_line_by_line_and_a_broken_line_is_unavailable() -> None:
    lines = [
        '{"id": "a", "text": "What is the apixaban dose?"}',
        "not json",
        '{"id": "c", "text": "She says that she wants to kill herself"}',
    ]
    result = bedside("check", "--direction", "input", stdin="\n".join(lines))
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["verdict"] for answer in answers] == ["allow", "unavailable", "notice"]
    assert answers[2]["findings"][0]["source"]


def test_an_unknown_direction_and_a_missing_checkpoint_say_what_to_do(tmp_path: Path) -> None:
    result = bedside("check", "--direction", "sideways", stdin="")
    assert (result.returncode, "sideways" in result.stderr) == (2, True)
    arguments = ("logits", "--checkpoint", tmp_path, "--input", tmp_path / "x", "--output", tmp_path / "y")
    result = bedside(*arguments)
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ids = tmp_path / "ids.safetensors"
    save_file({"input_ids": torch.tensor([[1, 2, 3]])}, ids)
    arguments = ("logits", "--checkpoint", folder, "--input", ids, "--output", tmp_path / "out.safetensors")
    assert bedside(*arguments).returncode == 0

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, folder / "model.safetensors")
    missing = bedside(*arguments)
    assert (missing.returncode, "model.norm.weight" in missing.stderr) == (2, True)

    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    unknown = bedside(*arguments)
    assert (unknown.returncode, "LlamaForCausalLM" in unknown.stderr) == (2, True)


def test_doctor_passes_here_and_names_the_model() -> None:
    report = last_json(bedside("doctor", "--json"))
    assert report["passed"]
    assert {check["name"] for check in report["checks"]} >= {"checkpoint", "rules", "disk", "network"}  # type: ignore[attr-defined, index]
