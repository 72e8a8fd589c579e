"""`bedside eval NAME`: what a checkpoint does, measured over text."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.evaluate_safety import safety
from app.commands.files import read_text
from app.commands.loading import show_loading
from app.config import read_settings
from app.errors import InputError

if TYPE_CHECKING:
    from model.router_health import RouterSnapshot

eval_app = typer.Typer(help="The evaluation harness.", no_args_is_help=True, pretty_exceptions_enable=False)
eval_app.command()(safety)


@eval_app.command()
def router(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Folder of a checkpoint; by default the one in use.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read; by default the demo records.")] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="Store the loads beside the weights, for drift to be held against.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Runs a checkpoint over text and prints how each layer's router chose; exit status 1 if one has collapsed."""
    from app.router_run import demo_prompts, route_messages, text_prompts
    from model.generator import LocalGenerator
    from model.router_health import RouterState
    from model.router_health import write_baseline as store

    settings = read_settings()
    folder = checkpoint or settings.checkpoint
    words = None if text is None else read_text(text)
    options = settings.load_options | {"draft_head": None}  # made for the checkpoint that is set
    with show_loading() as on_progress:
        generator = LocalGenerator.load(folder, **options, on_progress=on_progress)
    prompts = demo_prompts(generator) if text is None else text_prompts(generator, text.name, words or "")
    route_messages(generator, prompts)
    snapshot = generator.router_health(lifetime=True)
    typer.echo(describe_routers(snapshot))
    if write_baseline:
        typer.echo(f"Baseline: {store(folder, snapshot)}")
    if json_output:
        typer.echo(json.dumps({"checkpoint": folder.name, **asdict(snapshot)}))
    if snapshot.in_state(RouterState.COLLAPSED):
        raise typer.Exit(1)


@eval_app.command()
def precision(
    reference: Annotated[Path, typer.Option(help="Folder of the checkpoint to hold against, such as the BF16 one.")],
    candidate: Annotated[Path, typer.Option(help="Folder of the checkpoint to judge.")],
    output: Annotated[Path | None, typer.Option(help="Where to save; by default the candidate's folder.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many items only, for a first look.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as the last line.")] = False,
) -> None:
    """Reports what a lower precision changed, in figures and in answers; exit status 1 if the gate is not passed."""
    from app.evaluation.precision import compare_checkpoints
    from app.evaluation.report import require_writable, save_report
    from app.evaluation.report_page import describe_gate, render_page

    require_writable(output or candidate, is_ours=output is not None)
    report = compare_checkpoints(reference, candidate, limit, ProgressLine())
    paths = save_report(report, render_page(report), output or candidate)
    typer.echo(describe_gate(report))
    typer.echo(f"Report: {paths[0]}\nPage: {paths[1]}")
    if json_output:
        typer.echo(json.dumps(report, ensure_ascii=False))
    if not report["gate"]["passed"]:
        raise typer.Exit(1)


@eval_app.command()
def needle(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Folder of a checkpoint; by default the one in use.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the prompts, with commas between.")] = "200,400,800",
    trials: Annotated[int, typer.Option(min=1, help="Prompts of each length and depth.")] = 10,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Prints how often one dose among many is found, by the prompt's length and the dose's place in it."""
    from app.evaluation.needle import describe_needles, find_needles
    from model.generator import LocalGenerator

    settings = read_settings()
    folder = checkpoint or settings.checkpoint
    wanted = read_lengths(lengths)
    options = settings.load_options | {"draft_head": None}
    with show_loading() as on_progress:
        generator = LocalGenerator.load(folder, **options, on_progress=on_progress)
    results = list(find_needles(generator, wanted, trials, ProgressLine()))
    typer.echo(describe_needles(results))
    if json_output:
        typer.echo(json.dumps({"checkpoint": folder.name, "results": [asdict(result) for result in results]}))


def read_lengths(text: str) -> list[int]:
    """Whole numbers with commas between. Raises InputError naming one that is none."""
    for part in text.split(","):
        if not part.strip().isdecimal() or not int(part):
            raise InputError(f"--lengths: {part.strip()!r} is no number of tokens; write for example 200,400,800.")
    return sorted({int(part) for part in text.split(",")})


class ProgressLine:
    """One line on standard error that says how far a step is and how long it will still take: rewritten in place on a
    terminal, a new line now and then in a log."""

    def __init__(self) -> None:
        self._step, self._started, self._shown = "", 0.0, 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if step != self._step:
            self._step, self._started, self._shown = step, now, 0.0
        if done < total and now - self._shown < (0.2 if is_terminal else 10.0):
            return
        self._shown = now
        left = (now - self._started) / max(done, 1) * (total - done)
        line = f"{step} {done:,} of {total:,}, {left:.0f} s left in this step"
        typer.echo(f"\r{line:<78}" if is_terminal else line, err=True, nl=not is_terminal or done == total)


def describe_routers(snapshot: RouterSnapshot) -> str:
    """A line per layer."""
    lines = ["layer  entropy   dead  flooded  busiest   margin    drift  state"]
    for layer in snapshot.layers:
        margin, drift = (f"{value:.4f}" if value is not None else "–" for value in (layer.margin, layer.drift))
        lines.append(
            f"{layer.layer:5}  {layer.entropy:7.3f}  {layer.dead:4.0%}  {layer.flooded:7.0%}  {layer.busiest:7.0%}  "
            f"{margin:>7}  {drift:>7}  {layer.state}"
        )
    return "\n".join([*lines, f"{snapshot.num_routed:,} tokens; a layer is judged from {snapshot.min_tokens:,} on."])
