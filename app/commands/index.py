"""`bedside index`: makes the vectors of every patient anew from the stored text."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from app.config import prepare_process, read_settings


def index(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Makes the vector index anew from the stored text, for every patient; stop the app first."""
    from app.services import rebuild_index

    prepare_process()
    num_patients = rebuild_index(read_settings())
    typer.echo(f"The index was made anew for {num_patients} patient{'' if num_patients == 1 else 's'}.")
    if json_output:
        typer.echo(json.dumps({"patients": num_patients}))
