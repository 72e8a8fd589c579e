"""`bedside train STAGE --config FILE`: the three stages that make a model, and the plots of a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import InputError

if TYPE_CHECKING:
    from model.train.config import TrainConfig


class Stage(StrEnum):
    CPT = "cpt"
    SFT = "sft"
    GRPO = "grpo"
    PLOT = "plot"


def train(
    stage: Annotated[Stage, typer.Argument(help="cpt, sft or grpo; plot draws what a run has logged so far.")],
    config: Annotated[Path, typer.Option(help="YAML of the run.")],
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps, to go on later.")] = None,
) -> None:
    """Trains the embedded model, a stage at a time; an interrupted run goes on where it was, to the bit."""
    from model.train.config import load_config

    settings = load_config(config)
    if stage is not Stage.PLOT:
        _run(stage, settings, max_steps)
    typer.echo(f"Checkpoint: {settings.output_dir}\nPlots: {_plot(settings.output_dir)}")


def _run(stage: Stage, config: TrainConfig, max_steps: int | None) -> None:
    from app import prompt
    from app.evaluation.held_out import evaluation_texts
    from model.train.cleaning import prepare
    from model.train.corpora import read_texts
    from model.train.cpt import CptRun
    from model.train.grpo import GrpoRun
    from model.train.run import Run
    from model.train.sft import SftRun

    if not config.data_dir.is_dir():
        raise InputError(f"data_dir {config.data_dir} is not there; put the training data there or correct the key.")
    cleaned = prepare(read_texts(config.data_dir), evaluation_texts(config.data_dir.parent / "bench"))
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in cleaned.dropped.items())
    typer.echo(f"Texts: {sum(map(len, cleaned.texts.values())):,}; left out: {dropped}.")
    run: Run[Any]
    match stage:
        case Stage.CPT:
            run = CptRun(config, prompt.render, cleaned.texts)
        case Stage.SFT:
            run = SftRun(config, prompt.render, cleaned.texts)
        case _:
            run = GrpoRun(config, prompt.render, cleaned.texts)
    run.go(max_steps)


def _plot(folder: Path) -> Path:
    """Draws RUN/log.jsonl into RUN/training.html and says what looks like reward hacking."""
    from app.evaluation.training_plots import draw_run, read_log
    from model.train.grpo import find_hacking

    entries = read_log(folder / "log.jsonl")
    if warning := find_hacking(entries):
        typer.echo(f"Warning: {warning}", err=True)
    path = folder / "training.html"
    path.write_text(draw_run(folder.name, entries, warning), encoding="utf-8")
    return path
