"""`bedside bench WHAT`: speed and memory of this machine with the checkpoint that is set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands.loading import show_loading
from app.config import read_settings

if TYPE_CHECKING:
    from app.measure import ModelBench

bench_app = typer.Typer(
    help="Speed and memory of this machine, with the checkpoint that is set.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
ContextOption = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
TokensOption = Annotated[int, typer.Option(min=1, help="Tokens of each answer.")]


@bench_app.command()
def decode(context: ContextOption = 100, tokens: TokensOption = 64, json_output: JsonFlag = False) -> None:
    """One answer: tokens/s, and the share of the memory's bandwidth."""
    _print(_load().decode(context, tokens), json_output)


@bench_app.command()
def prefill(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512, json_output: JsonFlag = False
) -> None:
    """A prompt: tokens/s, and milliseconds to the first token of its answer."""
    _print(_load().prefill(tokens), json_output)


@bench_app.command()
def throughput(
    streams: Annotated[int, typer.Option(min=1, max=64, help="Answers at once.")] = 8,
    context: ContextOption = 100,
    tokens: TokensOption = 32,
    json_output: JsonFlag = False,
) -> None:
    """Many answers at once, from the first request to the last token."""
    _print(_load().throughput(streams, context, tokens), json_output)


@bench_app.command()
def index(
    pages: Annotated[int, typer.Option(min=1, max=5000, help="Pages of the generated record.")] = 100,
    json_output: JsonFlag = False,
) -> None:
    """A generated PDF: seconds until it can be asked, and the first search in it."""
    from app.measure import measure_index

    _print(measure_index(read_settings(), pages), json_output)


def _load() -> ModelBench:
    from app.measure import ModelBench

    with show_loading() as on_progress:
        return ModelBench.load(read_settings(), on_progress)


def _print(figures: dict[str, Any], as_json: bool) -> None:
    for name, value in figures.items():
        typer.echo(f"{name:20} {value}")
    if as_json:
        typer.echo(json.dumps(figures, ensure_ascii=False))
