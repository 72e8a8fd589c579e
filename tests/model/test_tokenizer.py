from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import CheckpointError
from model.tokenizer import Detokenizer, Tokenizer
from tests.model.conftest import SPECIALS, make_fast_tokenizer

TOKENIZER = Tokenizer(make_fast_tokenizer(), stop_ids=[1, 4])


@given(st.text())
def test_text_survives_the_round_trip_but_for_normalisation(text: str) -> None:
    import unicodedata

    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


@given(st.text())
def test_streamed_pieces_are_whole_characters_and_add_up(text: str) -> None:
    ids = TOKENIZER.encode(text)
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(ids)


def test_character_of_several_tokens_is_held_until_whole() -> None:
    ids = TOKENIZER.encode("🩺")
    detokenizer = Detokenizer(TOKENIZER)
    assert len(ids) == 4
    assert [detokenizer.add(token_id) for token_id in ids] == ["", "", "", "🩺"]


def test_answer_cut_inside_a_character_ends_in_a_replacement() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.add(TOKENIZER.encode("🩺")[0]) == ""
    assert detokenizer.finish() == "\ufffd"


@pytest.mark.parametrize("special", SPECIALS)
def test_special_token_in_text_is_only_text(special: str) -> None:
    ids = TOKENIZER.encode(f"a {special} b")
    assert not set(ids) & set(TOKENIZER.special_ids.values())
    assert TOKENIZER.decode(ids) == f"a {special} b"


def test_special_and_empty_ids_have_no_text() -> None:
    assert TOKENIZER.decode([0, 1, 4, 100_000]) == ""


def test_every_end_token_stops(checkpoint: Path, tmp_path: Path) -> None:
    assert Tokenizer.load(checkpoint).stop_ids == (1, 4)
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|role_end|>"}}))
    assert Tokenizer.load(tmp_path).stop_ids == (2, 3, 4)


@pytest.mark.parametrize(
    ("break_it", "names"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": "<no>"}'), "'<no>'"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json"),
    ],
)
def test_broken_tokenizer_files_are_named(checkpoint: Path, tmp_path: Path, break_it, names: str) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=names):
        Tokenizer.load(tmp_path)
