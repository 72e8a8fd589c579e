"""`bedside erase`: documents or a patient, with the scan that proves it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from app.config import read_settings
from app.errors import InputError
from contracts import GenerationError, GenerationEvent, Message, ModelInfo, SamplingParams

if TYPE_CHECKING:
    from app.certificate import Certificate


def erase(
    document: Annotated[list[str] | None, typer.Option(help="Id of a document; may be given several times.")] = None,
    patient: Annotated[str, typer.Option(help="Id of a patient: every document, answer and finding goes.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Erases, scans every byte of the data folder for what is left, and prints the certificate."""
    from app.certificate import erase as erase_with_proof
    from app.services import build_services

    if bool(document) == bool(patient):
        raise InputError("Give either --document ID (it may be repeated) or --patient ID.")
    services = build_services(replace(read_settings(), demo=False), NoModel())
    try:
        certificate = erase_with_proof(services, document or (), patient, actor="shell")
    finally:
        services.close()
    if json_output:
        typer.echo(json.dumps(asdict(certificate) | {"passed": certificate.passed}))
    else:
        typer.echo("\n".join(_lines(certificate)))
    if not certificate.passed:
        raise typer.Exit(1)


def _lines(certificate: Certificate) -> Iterator[str]:
    whose = f"patient {certificate.patient_id}" if certificate.patient_id else "documents"
    yield f"Erased at {certificate.erased_at}: {whose}, {len(certificate.document_ids)} in all."
    yield from certificate.sentences


class NoModel:
    """A contracts.Generator for work that needs none: a large model must not be loaded to remove a page. Prepared
    records are then removed all together, since only their model can tell them apart."""

    info = ModelInfo("none", "none", "none", 0, 0, "")

    def count_tokens(self, text: str) -> int:
        raise GenerationError("No model is loaded.")

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        raise GenerationError("No model is loaded.")

    def stream(
        self, messages: Sequence[Message], params: SamplingParams, cancel: threading.Event | None = None
    ) -> Iterator[GenerationEvent]:
        raise GenerationError("No model is loaded.")
