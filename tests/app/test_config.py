"""Settings: a value typed wrong is named; nothing is guessed."""

from pathlib import Path

import pytest

from app.config import DEVICES, KV_CACHES, OFFLINE_ENVIRONMENT, Settings, go_offline, read_settings
from app.errors import SettingsError
from model.backend import CACHES
from model.backend_choice import DEVICES as MODEL_DEVICES


def test_defaults_serve_this_machine_only_with_the_embedded_model_in_demo_mode() -> None:
    settings = read_settings({})
    assert settings.host == "127.0.0.1"
    assert settings.uses_embedded_model
    assert settings.is_demo


def test_a_real_checkpoint_ends_demo_mode_unless_it_is_asked_for(tmp_path: Path) -> None:
    environment = {"BEDSIDE_CHECKPOINT": str(tmp_path)}
    assert not read_settings(environment).is_demo
    assert read_settings(environment | {"BEDSIDE_DEMO": "true"}).is_demo


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "bedside.toml"
    file.write_text('port = 9000\nhost = "0.0.0.0"\n', encoding="utf-8")
    settings = read_settings({"BEDSIDE_CONFIG": str(file), "BEDSIDE_PORT": "9100"})
    assert (settings.port, settings.host) == (9100, "0.0.0.0")


@pytest.mark.parametrize("precision", ["auto", "f32", "bf16", "nf4", "int8"])
def test_every_precision_that_can_be_computed_can_be_set(precision: str) -> None:
    assert read_settings({"BEDSIDE_PRECISION": precision}).precision == precision


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"BEDSIDE_PROT": "1"}, ["prot", "port"]),
        ({"BEDSIDE_PORT": "eighty"}, ["port", "'eighty'", "whole number"]),
        ({"BEDSIDE_PORT": "70000"}, ["port", "70000", "65535"]),
        ({"BEDSIDE_DEMO": "maybe"}, ["demo", "'maybe'"]),
        ({"BEDSIDE_PRECISION": "int2"}, ["precision", "int2", "nf4"]),
        ({"BEDSIDE_KERNELS": "mmx"}, ["kernels", "mmx", "avx2"]),
        ({"BEDSIDE_CONFIG": "/nowhere.toml"}, ["/nowhere.toml"]),
    ],
)
def test_a_bad_setting_is_named(environment: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(environment)
    assert all(word in str(error.value) for word in words)


def test_the_longest_time_for_an_answer_reaches_the_model() -> None:
    assert read_settings({}).sampling.max_seconds == 0
    assert read_settings({"BEDSIDE_MAX_ANSWER_SECONDS": "90"}).sampling.max_seconds == 90


def test_tracing_to_an_outside_server_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    with pytest.raises(SettingsError, match="LANGSMITH_TRACING"):
        go_offline()


def test_going_offline_reaches_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for key in OFFLINE_ENVIRONMENT:
        monkeypatch.delenv(key, raising=False)
    go_offline()
    assert {key: os.environ[key] for key in OFFLINE_ENVIRONMENT} == OFFLINE_ENVIRONMENT


def test_every_setting_is_in_the_docs() -> None:
    from dataclasses import fields

    text = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [field.name for field in fields(Settings) if f"BEDSIDE_{field.name.upper()}" not in text]
    assert not missing


def test_the_caches_that_can_be_set_are_those_that_the_backend_has() -> None:
    assert tuple(CACHES) == KV_CACHES
    assert MODEL_DEVICES == DEVICES
