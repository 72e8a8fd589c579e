"""`bedside eval safety`: the figures of the safety layer, with intervals and the worst errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from app.errors import InputError

SETS = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside the checkout, where the tests look as well


def safety(
    figure: Annotated[list[str] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    sets: Annotated[
        Path | None, typer.Option(help="Folder of the public sets; by default beside the checkout.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the figures: .json or .md.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Measures the safety layer against its goals; exit status 1 if one is missed."""
    from app.evaluation.safety.figure import Bench
    from app.evaluation.safety.run import as_json, as_markdown, describe, find_figures, measure
    from app.safety_layer import build_safety

    if sets is not None and not sets.is_dir():
        raise InputError(f"--sets: {sets} is not a folder.")
    if output is not None and output.suffix not in (".json", ".md"):
        raise InputError(f"--output: {output} must end in .json or .md.")
    chosen = find_figures(figure or ())
    checker = build_safety()
    bench = Bench(checker, sets or (SETS if SETS.is_dir() else None))
    outcomes = list(measure(chosen, bench, lambda name: typer.echo(f"{name} …", err=True)))
    typer.echo(describe(outcomes))
    report = as_json(outcomes, checker.version)
    if output is not None:
        is_page = output.suffix == ".md"
        text = as_markdown(outcomes, checker.version) if is_page else json.dumps(report, ensure_ascii=False, indent=1)
        try:
            output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output: {output} cannot be written ({error.strerror}).") from error
    if json_output:
        typer.echo(json.dumps(report, ensure_ascii=False))
    if not all(outcome.is_reached or outcome.missing for outcome in outcomes):
        raise typer.Exit(1)
