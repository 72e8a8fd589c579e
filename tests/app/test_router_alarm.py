"""A router gone wrong, from the weights to the page: the real program over the embedded model with one layer broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app import router_watch
from app.events import Turn, TurnStatus
from app.router_watch import RouterWatch
from app.services import Services
from contracts import ClaimKind, Direction, Generator, Message, Role, SamplingParams, Verdict
from model.checkpoint import load_model, save_checkpoint
from model.generator import EMBEDDED, LocalGenerator
from model.router_health import BASELINE_FILE, HasRouterHealth, RouterSnapshot, RouterState
from tests.app.conftest import LETTER
from tests.app.test_cli import bedside
from tests.app.test_pages import drawn, fresh_cache, open_app, use  # noqa: F401 - fresh_cache runs by itself

Make = Callable[[Generator], Services]
AddLetter = Callable[..., str]
LONG_LETTER = LETTER + "\n".join(
    f"On day {day} her weight was {70 + day} kg and her pulse {60 + day}." for day in range(21)
)
RULE = "router-collapse-layer-3"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with the router of layer 3 at zero: every token goes to the same experts."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    model = load_model(EMBEDDED)
    model.model.layers[3].mlp.gate.weight.data.zero_()
    save_checkpoint(model, folder, torch.bfloat16)
    return folder


def ask(services: Services, conversation_id: str) -> Turn:
    turn = services.jobs.ask(conversation_id, "What is the apixaban dose?")
    services.jobs.wait(conversation_id, timeout_s=60)
    stored = services.store.get_turn(turn.id)
    assert stored is not None
    return stored


def rules_of(turn: Turn) -> list[str]:
    return [finding.rule for finding in turn.model_findings]


def test_a_collapsed_router_writes_nothing_and_the_record_speaks(
    make_services: Make, add_letter: AddLetter, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    services = make_services(LocalGenerator.load(broken, threads=1))
    turn = ask(services, add_letter(services, LONG_LETTER))
    assert rules_of(turn) == [RULE]
    assert turn.model_findings[0].severity is Verdict.HOLD
    assert "layer 3" in turn.model_findings[0].message
    assert turn.status is TurnStatus.DONE
    assert {claim.kind for claim in turn.claims} == {ClaimKind.QUOTE}
    assert any("Apixaban 5 mg twice daily" in claim.text for claim in turn.claims)
    assert turn.verdict is Verdict.NOTICE
    assert RULE in caplog.text


def test_an_alarm_is_recorded_once_and_later_answers_say_that_it_lasts(
    make_services: Make, add_letter: AddLetter, broken: Path
) -> None:
    services = make_services(LocalGenerator.load(broken, threads=1))
    conversation = add_letter(services, LONG_LETTER)
    turns = [ask(services, conversation) for _ in range(3)]
    assert [rules_of(turn) for turn in turns] == [[RULE], ["router-alarm-lasts"], ["router-alarm-lasts"]]
    assert all(claim.kind is ClaimKind.QUOTE for turn in turns for claim in turn.claims)
    recorded = services.store.list_findings(direction=Direction.OUTPUT)
    assert [record.turn_id for record in recorded if record.finding.rule == RULE] == [turns[0].id]


def test_drift_is_a_notice_and_the_model_still_answers(
    make_services: Make, add_letter: AddLetter, tmp_path: Path
) -> None:
    folder = tmp_path / "drifted"
    shutil.copytree(EMBEDDED, folder)
    baseline = json.loads((EMBEDDED / BASELINE_FILE).read_text())
    baseline["layers"]["2"] = [0.25] * 4 + [0.0] * 12
    (folder / BASELINE_FILE).write_text(json.dumps(baseline))
    services = make_services(LocalGenerator.load(folder, threads=1))
    turn = ask(services, add_letter(services, LONG_LETTER))
    assert rules_of(turn) == ["router-drift-layer-2"]
    assert turn.model_findings[0].severity is Verdict.NOTICE
    assert turn.usage.completion_tokens > 0


def test_odd_text_is_told_from_a_broken_router(make_services: Make, add_letter: AddLetter) -> None:
    """Nobody may stop the model for everybody by uploading a page of one word."""
    generator = LocalGenerator.load(EMBEDDED, threads=1)
    list(generator.stream([Message(Role.USER, "mg " * 900)], SamplingParams(max_tokens=1)))
    assert {layer.state for layer in generator.router_health().layers} == {RouterState.COLLAPSED}
    services = make_services(generator)
    turn = ask(services, add_letter(services, LONG_LETTER))
    assert turn.model_findings == ()
    assert turn.usage.completion_tokens > 0
    assert {layer.state for layer in generator.router_health().layers} == {RouterState.HEALTHY}


def test_a_self_test_that_sees_nothing_clears_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = LocalGenerator.load(EMBEDDED, threads=1)
    list(generator.stream([Message(Role.USER, "mg " * 900)], SamplingParams(max_tokens=1)))
    monkeypatch.setattr(router_watch, "run_self_test", lambda generator: RouterSnapshot((), 0, 256, True))
    assert RouterWatch(generator).look().holds


def test_the_shipped_model_raises_no_alarm(make_services: Make, add_letter: AddLetter) -> None:
    generator = LocalGenerator.load(EMBEDDED, threads=1)
    services = make_services(generator)
    turn = ask(services, add_letter(services, LONG_LETTER))
    assert turn.model_findings == ()
    assert isinstance(generator, HasRouterHealth)
    snapshot = generator.router_health()
    assert {layer.state for layer in snapshot.layers} == {RouterState.HEALTHY}
    assert snapshot.has_baseline


# --- the screens ------------------------------------------------------------------------------------------------


def test_the_screens_show_a_collapsed_router(
    make_services: Make, add_letter: AddLetter, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = use(make_services(LocalGenerator.load(broken, threads=1)), monkeypatch)
    conversation = add_letter(services, LONG_LETTER)
    ask(services, conversation)
    assert "its router has collapsed in layer 3" in drawn(open_app(conversation=conversation))
    model = open_app("model_status")
    assert "collapsed in layer 3" in model.error[0].value
    table = model.dataframe[0].value
    assert table["State"].tolist() == ["Healthy", "Healthy", "Collapsed", "Healthy", "Healthy", "Healthy"]
    assert len(table["Load of the experts"][2]) == 16
    findings = [words.value for finding in open_app("safety_review").expander for words in finding.markdown]
    assert any("its router has collapsed in layer 3" in words for words in findings)


def test_the_model_page_before_the_first_token_says_so(make_services: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    use(make_services(LocalGenerator.load(EMBEDDED, threads=1)), monkeypatch)
    model = open_app("model_status")
    assert any("No token has been routed" in info.value for info in model.info)
    assert not model.error


# --- the command ------------------------------------------------------------------------------------------------


def test_eval_router_names_the_collapsed_layer_and_fails(broken: Path, tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text(LONG_LETTER, encoding="utf-8")
    result = bedside("eval", "router", broken, "--text", text, "--json")
    assert result.returncode == 1, result.stderr
    layers = json.loads(result.stdout.splitlines()[-1])["layers"]
    assert {layer["layer"]: layer["state"] for layer in layers} == {
        1: "healthy",
        2: "healthy",
        3: "collapsed",
        4: "healthy",
        5: "healthy",
        6: "healthy",
    }


def test_eval_router_says_what_it_cannot_read(tmp_path: Path) -> None:
    result = bedside("eval", "router", "--text", tmp_path / "none.txt")
    assert result.returncode == 2
    assert "none.txt cannot be read" in result.stderr
