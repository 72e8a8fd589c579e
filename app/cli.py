"""The `bedside` command: everything the page does, scripted and measured from a shell.

With --json the last line of standard output is one JSON object. Errors go to standard error in one line that says what
to do; exit status 2 is bad input, 1 a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.bench import bench_app
from app.commands.erase import erase
from app.commands.evaluate import eval_app
from app.commands.index import index
from app.commands.loading import show_loading
from app.commands.pack import pack
from app.commands.quantize import quantize
from app.commands.serve import serve
from app.commands.train import train_app
from app.config import ROOT, prepare_process, read_settings
from app.errors import BedsideError, InputError, SettingsError, StorageError
from app.events import Turn, TurnStatus
from contracts import Claim, ClaimKind, ContextLengthError, GenerationError, Patient, PatientError

if TYPE_CHECKING:
    from app.services import Services
    from retrieval.parsers import ParsedDocument

app = typer.Typer(
    help="Bedside: the clinical assistant that a hospital runs on its own hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(eval_app, name="eval")
app.add_typer(train_app, name="train")
app.command()(erase)
app.command()(index)
app.command()(pack)
app.command()(quantize)
app.command()(serve)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NO_STATEMENT = (ClaimKind.WITHHELD, ClaimKind.CONFLICT)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PatientOption = Annotated[Path | None, typer.Option("--patient", help="JSON file of the patient's data.")]


def main() -> None:
    """Entry point: turns our errors into one line and an exit status."""
    try:
        prepare_process()
        app()
    except (InputError, SettingsError, PatientError, ContextLengthError, ValueError) as error:
        _exit(error, 2)  # the layers' errors for bad input are all ValueErrors
    except (BedsideError, GenerationError, OSError) as error:
        _exit(error, 1)


def _exit(error: Exception, status: int) -> None:
    print(f"bedside: {error}", file=sys.stderr)
    sys.exit(status)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _parse_file(name: str, data: bytes) -> ParsedDocument:
    from retrieval.errors import DocumentError
    from retrieval.parsers import parse

    try:
        return parse(data, name)
    except DocumentError as error:
        raise InputError(f"{name}: {error}") from error


def _read_patient(path: Path | None) -> Patient | None:
    if path is None:
        return None
    try:
        data = json.loads(_read_file(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold one JSON object with the patient's fields.")
    return Patient.from_dict(data)


# --- the app ----------------------------------------------------------------------------------------------------


@app.command()
def run(
    host: Annotated[str | None, typer.Option(help="Address to bind; the default serves this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on.")] = None,
) -> None:
    """Starts the app in the browser (what `make run` calls)."""
    settings = read_settings()
    settings = replace(settings, host=host or settings.host, port=port or settings.port)
    os.environ |= {"BEDSIDE_HOST": settings.host, "BEDSIDE_PORT": str(settings.port)}
    # Streamlit reads .streamlit/config.toml from the current folder only.
    os.chdir(ROOT)
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py"]
    options = [f"--server.address={settings.host}", f"--server.port={settings.port}"]
    options.append(f"--server.maxUploadSize={settings.max_upload_mb}")
    if settings.host in _LOOPBACK:  # a page elsewhere must not reach it by a name of its own (DNS rebinding)
        options += [f"--server.allowedHosts={name}" for name in _LOOPBACK]
    print(f"Bedside: http://{settings.host}:{settings.port}", flush=True)
    os.execv(sys.executable, [*command, *options])


@app.command()
def doctor(
    json_output: JsonFlag = False,
    plan: Annotated[
        str, typer.Option(help="Only: what of the checkpoint a card would hold, as 24GB, 24GB@900 (GB/s) or H100.")
    ] = "",
    context: Annotated[int, typer.Option(min=1, help="With --plan: tokens of context on the card.")] = 8192,
    form: Annotated[str, typer.Option("--format", help="With --plan: bf16, fp8, int4, int4-experts, nf4.")] = "auto",
) -> None:
    """Checks that this machine can serve: each line passes or says what to do."""
    from app.card_plan import plan_for
    from app.doctor import run_checks

    if plan:
        found = plan_for(read_settings(), plan, context, form)
        print("\n".join(found.describe()))
        if json_output:
            _print_json(asdict(found))
        raise typer.Exit(int(bool(found.problem)))
    with show_loading() as on_progress:
        checks = run_checks(read_settings(), on_progress)
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.message}")
    if json_output:
        _print_json({"passed": all(c.passed for c in checks), "checks": [asdict(c) for c in checks]})
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    document: Annotated[list[Path], typer.Option(help="A file of the record; may be given several times.")],
    patient: PatientOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Gives one grounded answer about the documents; nothing is kept."""
    from app.prompt import require_text

    facts = _read_patient(patient)
    files = [(path.name, _read_file(path)) for path in document]
    require_text(question)
    for name, data in files:
        _parse_file(name, data)  # a file that cannot be read is refused before a large model is loaded
    with _temporary_services() as services:
        turn = _ask_once(services, question, files, facts or Patient())
        if json_output:
            _print_json(_answer_as_json(turn, services))
        else:
            print(_answer_as_text(turn))
    if turn.error and not turn.claims:
        print(f"bedside: {turn.error}", file=sys.stderr)
        raise typer.Exit(1)


@contextmanager
def _temporary_services() -> Iterator[Services]:
    """The whole program over a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bedside-"))
    try:
        settings = replace(read_settings(), data_dir=folder, database_url="", demo=False, prepared_mb=0)
        with show_loading() as on_progress:
            from app.services import build_services

            services = build_services(settings, on_progress=on_progress)
        try:
            yield services
        finally:
            services.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask_once(services: Services, question: str, files: list[tuple[str, bytes]], patient: Patient) -> Turn:
    record = services.store.add_patient(patient)
    for name, data in files:
        document = services.library.ingest(services.library.add(record.id, name, data).id)
        if document is None or document.error:
            raise InputError(f"{name}: {document.error if document else 'it could not be read.'}")
    conversation = services.store.add_conversation(record.id)
    turn_id = services.jobs.ask(conversation.id, question).id
    services.jobs.wait(conversation.id)
    turn = services.store.get_turn(turn_id)
    if turn is None:
        raise StorageError("The answer was not stored; see the log.")
    return turn


def _answer_as_text(turn: Turn) -> str:
    lines = [f"! {message}" for message in dict.fromkeys(f.message for f in turn.input_findings + turn.model_findings)]
    for claim in turn.claims:
        keys = "".join(f" [{citation.key}]" for citation in claim.citations)
        if claim.kind is ClaimKind.WITHHELD:
            reason = claim.findings[0].message if claim.findings else "no passage supports it"
            lines.append(f"(1 sentence withheld: {reason})")
        elif claim.kind is ClaimKind.CONFLICT:
            lines.append(f"! {claim.text}{keys}")
        else:
            lines.append(f"“{claim.text}”{keys}" if claim.kind is ClaimKind.QUOTE else f"{claim.text}{keys}")
    if turn.status is TurnStatus.OUT_OF_TIME:
        lines.append("(The time for an answer was over before it was complete.)")
    cited = {c.key: c for claim in turn.claims for c in claim.citations}
    lines += [f"[{key}] {c.document}, page {c.page}" for key, c in sorted(cited.items())]
    if turn.coverage:
        lines.append(f"Read {turn.coverage.pages_read} of {turn.coverage.pages} pages.")
    return "\n".join(lines)


def _answer_as_json(turn: Turn, services: Services) -> dict[str, Any]:
    from app.conversation import answer_text

    info, usage, coverage = services.generator.info, turn.usage, turn.coverage
    return {
        "answer": answer_text(turn),
        "status": turn.status.value,
        "claims": [_claim_as_json(claim) for claim in turn.claims if claim.kind not in _NO_STATEMENT],
        "conflicts": [_claim_as_json(claim) for claim in turn.claims if claim.kind is ClaimKind.CONFLICT],
        "withheld": sum(claim.kind is ClaimKind.WITHHELD for claim in turn.claims),
        "coverage": asdict(coverage) if coverage else None,
        "verdict": turn.verdict.value,
        "findings": [asdict(finding) for finding in turn.findings],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "ttft_s": usage.ttft_s,
            "tokens_per_s": usage.tokens_per_s,
        },
        "model": {"name": info.name, "precision": info.precision, "kernels": info.kernels},
        "error": turn.error,
    }


def _claim_as_json(claim: Claim) -> dict[str, Any]:
    fields = ("document", "page", "start", "end", "quote", "method", "confidence")
    return {
        "text": claim.text,
        "kind": claim.kind.value,
        "supported": claim.supported,
        "citations": [{name: getattr(c, name) for name in fields} for c in claim.citations],
    }


# --- the layers, one by one -------------------------------------------------------------------------------------


@app.command()
def parse(file: Path, json_output: JsonFlag = False) -> None:
    """Shows what is read from a file, page by page."""
    parsed = _parse_file(file.name, _read_file(file))
    if json_output:
        pages = [
            {"page": p.number, "text": p.text, "method": p.method, "confidence": p.confidence} for p in parsed.pages
        ]
        _print_json(
            {"document": file.name, "pages": pages, "tables": list(parsed.tables), "warnings": list(parsed.warnings)}
        )
        return
    for page in parsed.pages:
        print(f"--- page {page.number} ({page.method}) ---\n{page.text}")
    for warning in parsed.warnings:
        print(f"bedside: {warning}", file=sys.stderr)


@app.command()
def search(
    docs: Annotated[Path, typer.Option(help="JSON lines of doc_id, title, text; may be .xz.")],
    queries: Annotated[Path, typer.Option(help="JSON lines of qid, query; may be .xz.")],
    output: Annotated[Path, typer.Option(help="Where to write one line a query.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Results per query.")] = 10,
) -> None:
    """Ranks the passages of a benchmark folder."""
    from retrieval.benchmark import run_search
    from retrieval.bilingual import BilingualEmbedder

    run_search(docs, queries, k, output, BilingualEmbedder())


@app.command()
def check(
    direction: Annotated[str, typer.Option(help="input, document or output.")],
    patient: PatientOption = None,
) -> None:
    """Checks JSON lines from standard input: {id, text, passages?, messages?} → {id, verdict, findings, seconds}."""
    from app.safety_layer import build_safety
    from contracts import Direction
    from safety.checks import check_line

    if direction not in list(Direction):
        raise InputError(f"--direction is {direction!r}; use input, document or output.")
    facts = _read_patient(patient)
    safety = build_safety(threads=read_settings().threads)
    for line in filter(str.strip, sys.stdin):
        _print_json(check_line(line, Direction(direction), facts, safety))


@app.command()
def logits(
    checkpoint: Annotated[Path, typer.Option(help="Folder of a Hugging Face checkpoint.")],
    input_path: Annotated[Path, typer.Option("--input", help="safetensors with input_ids, attention_mask.")],
    output_path: Annotated[Path, typer.Option("--output", help="safetensors to write.")],
    precision: Annotated[str | None, typer.Option(help="f32 (default), bf16, f16, nf4 or int8.")] = None,
    kernels: Annotated[str | None, typer.Option(help="reference, avx512 or avx2.")] = None,
) -> None:
    """Runs the decoder on given ids and writes logits and routing."""
    from model.logits import run_logits

    with show_loading() as on_progress:
        run_logits(checkpoint, input_path, output_path, precision, kernels, on_progress=on_progress)


if __name__ == "__main__":
    main()
