"""`bedside eval grounded`: how well a checkpoint answers from passages, before the product checks its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands.loading import show_loading
from app.commands.progress import ProgressLine
from app.config import read_settings


def grounded(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Folder of a checkpoint; by default the one in use.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask this many items only, spread evenly.")] = None,
    answers: Annotated[Path | None, typer.Option(help="Where to write each answer, a JSON line each.")] = None,
    items_folder: Annotated[
        Path | None, typer.Option("--items", help="Folder of questions; by default those that ship.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Asks the held-out questions and prints how many claims stand, are rightly cited and rightly left unsaid."""
    from app.evaluation.grounded import answer_items, as_json_line, describe, judge, summarise
    from app.evaluation.grounded_items import GROUNDED, load_items
    from model.generator import LocalGenerator
    from safety.checker import RuleSafetyChecker

    settings = read_settings()
    folder = checkpoint or settings.checkpoint
    items = load_items(items_folder or GROUNDED)
    number = min(limit or len(items), len(items))
    items = tuple(items[index * len(items) // number] for index in range(number))
    options = settings.load_options | {"draft_head": None}
    with show_loading() as on_progress:
        generator = LocalGenerator.load(folder, **options, on_progress=on_progress)
    checker = RuleSafetyChecker()
    results = [judge(item, said, checker) for item, said in answer_items(generator, items, ProgressLine())]
    summary = summarise(results)
    typer.echo(describe(summary))
    if answers:
        answers.write_text("".join(f"{as_json_line(result)}\n" for result in results), encoding="utf-8")
    if json_output:
        typer.echo(json.dumps({"checkpoint": folder.name, **summary}))
