"""`bedside train embedder`: the blocks of the Chinese embedder that are our own, from public questions and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.commands.train_guard import SETS
from app.errors import InputError

JUDGED = SETS.with_name("bench") / "zh_qa"


def embedder(
    data: Annotated[Path, typer.Option(help="Folder of the public sets.")] = SETS,
    judged: Annotated[Path, typer.Option(help="Folder of the task it is judged by; nothing of it is learnt.")] = JUDGED,
) -> None:
    """The Chinese embedder: its tuned blocks are written where the program reads them."""
    from retrieval.multilingual.corpus import Screen, read_judged, read_pairs
    from retrieval.multilingual.embedder import TUNED
    from retrieval.multilingual.packed import find_file, open_packed
    from retrieval.multilingual.training import TuningPlan, save, tune

    try:
        pairs = read_pairs(data, Screen(read_judged(judged)))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; name the folders with --data and --judged.") from error
    typer.echo(f"{len(pairs):,} answers with their questions", err=True)
    tuned = tune(open_packed(find_file()), pairs, TuningPlan(), _show_step)
    save(tuned.tensors, TUNED)
    typer.echo(
        f"Recall at 10 of held answers: {tuned.recall_before:.3f} before, {tuned.recall_after:.3f} after", err=True
    )


def _show_step(step: int, steps: int, loss: float) -> None:
    if step % 10 == 0 or step == steps:
        typer.echo(f"step {step:,} of {steps:,}, loss {loss:.3f}", err=True)
