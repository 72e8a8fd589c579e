"""`bedside train`: the three stages that make a model, the plots of a run, the guard and the Chinese embedder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.train_embedder import embedder
from app.commands.train_guard import guard
from app.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.train.config import TrainConfig
    from model.train.corpora import Text


train_app = typer.Typer(help="Trains the embedded model, the guard and the Chinese embedder.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="YAML of the run.")]
MaxStepsOption = Annotated[int | None, typer.Option(min=1, help="Stop after so many steps, to go on later.")]


class Stage(StrEnum):
    CPT = "cpt"
    SFT = "sft"
    GRPO = "grpo"


@train_app.command()
def cpt(config: ConfigOption, max_steps: MaxStepsOption = None) -> None:
    """Continual pre-training on medical text; like each stage, an interrupted run goes on where it was, to the bit."""
    _train(Stage.CPT, config, max_steps)


@train_app.command()
def sft(config: ConfigOption, max_steps: MaxStepsOption = None) -> None:
    """Supervised fine-tuning on questions about passages, with cited answers."""
    _train(Stage.SFT, config, max_steps)


@train_app.command()
def grpo(config: ConfigOption, max_steps: MaxStepsOption = None) -> None:
    """Reinforcement by rewards for citations, support, abstention and form."""
    _train(Stage.GRPO, config, max_steps)


@train_app.command()
def reader(config: ConfigOption) -> None:
    """A start for the other stages: written weights that find, copy and cite a line; learns which line is asked for."""
    import torch

    from app import prompt
    from model.train.config import load_config
    from model.train.reading import make_reader
    from retrieval.embedding import MiniLMEmbedder

    settings = load_config(config)
    embedder = MiniLMEmbedder(settings.threads)
    folder = make_reader(
        settings, prompt.render, _read_texts(settings), lambda texts: torch.from_numpy(embedder.embed(texts))
    )
    typer.echo(f"Checkpoint: {folder}")


@train_app.command()
def plot(config: ConfigOption) -> None:
    """Draws what a run has logged so far."""
    from model.train.config import load_config

    typer.echo(f"Plots: {_plot(load_config(config).output_dir)}")


train_app.command()(guard)
train_app.command()(embedder)


def _train(stage: Stage, path: Path, max_steps: int | None) -> None:
    from model.train.config import load_config

    config = load_config(path)
    _run(stage, config, max_steps)
    typer.echo(f"Checkpoint: {config.output_dir}\nPlots: {_plot(config.output_dir)}")


def _run(stage: Stage, config: TrainConfig, max_steps: int | None) -> None:
    from app import prompt
    from model.train.cpt import CptRun
    from model.train.grpo import GrpoRun
    from model.train.run import Run
    from model.train.sft import SftRun

    texts = _read_texts(config)
    run: Run[Any]
    match stage:
        case Stage.CPT:
            run = CptRun(config, prompt.render, texts)
        case Stage.SFT:
            run = SftRun(config, prompt.render, texts)
        case _:
            run = GrpoRun(config, prompt.render, texts)
    run.go(max_steps)


def _read_texts(config: TrainConfig) -> Mapping[str, Sequence[Text]]:
    """The public texts, cleaned."""
    from app.evaluation.held_out import evaluation_texts
    from model.train.cleaning import prepare
    from model.train.corpora import read_texts

    if not config.data_dir.is_dir():
        raise InputError(f"data_dir {config.data_dir} is not there; put the training data there or correct the key.")
    cleaned = prepare(read_texts(config.data_dir), evaluation_texts(config.data_dir.parent / "bench"))
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in cleaned.dropped.items())
    typer.echo(f"Texts: {sum(map(len, cleaned.texts.values())):,}; left out: {dropped}.")
    return cleaned.texts


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
