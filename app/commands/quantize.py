"""`bedside quantize SRC DST`: an INT4 copy of a checkpoint, made on a machine that could hold neither."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.files import read_text
from app.config import ROOT
from app.errors import InputError

if TYPE_CHECKING:
    from model.quantize.estimate import Estimate
    from model.quantize.shards import Step
    from model.quantize.stream import QuantizeReport

INTERRUPTED = 130
UNDIVIDED = "Left unquantized, since the group size does not divide their columns"
DEFAULT_TEXT = ROOT / "model" / "quantize" / "calibration" / "clinical.txt"
SHOW_EVERY_S = {True: 0.5, False: 30.0}  # on a terminal, where the line is redrawn; in a log


def quantize(
    source: Annotated[Path, typer.Argument(help="Folder of a BF16, F32 or FP8 checkpoint.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; an interrupted one is gone on with.")],
    form: Annotated[str, typer.Option("--format", help="int4: compressed-tensors pack-quantized.")] = "int4",
    group_size: Annotated[int, typer.Option(help="Columns that share a scale.")] = 128,
    method: Annotated[str, typer.Option(help="rtn: round to nearest; gptq: by calibration text, hours.")] = "rtn",
    attention: Annotated[bool, typer.Option("--attention", help="Quantize attention too.")] = False,
    lm_head: Annotated[bool, typer.Option("--lm-head", help="Quantize the head too.")] = False,
    mtp_projection: Annotated[bool, typer.Option("--mtp-projection", help="Quantize an MTP layer's eh_proj.")] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text for gptq; by default a short clinical one: a large model needs more."),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=64, help="Most tokens of it to use.")] = 32768,
    act_order: Annotated[bool, typer.Option("--act-order", help="gptq: largest inputs first.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over in a folder this command made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print sizes, memory and time; write nothing.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Quantizes a checkpoint to INT4, a layer at a time; run again after an interruption, it goes on."""
    from model.quantize.calibrate import read_calibration
    from model.quantize.estimate import estimate
    from model.quantize.source import QuantizeOptions
    from model.quantize.stream import quantize_checkpoint

    if form != "int4":
        raise InputError(f"--format is {form!r}; this version writes int4.")
    options = QuantizeOptions(method, group_size, attention, lm_head, mtp_projection, act_order)
    ids = None
    if method == "gptq":
        ids = read_calibration(source, read_text(calibration or DEFAULT_TEXT), calibration_tokens)
    if dry_run:
        expected = estimate(source, target, options, 0 if ids is None else ids.numel())
        _print(describe_estimate(expected), asdict(expected) if json_output else None)
        return
    meter = Meter()
    try:
        report = quantize_checkpoint(source, target, options, calibration_ids=ids, overwrite=overwrite, show=meter.show)
    except KeyboardInterrupt:
        typer.echo("\nbedside: interrupted; the same command goes on with the first unfinished layer.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        meter.end()
    _print(describe_report(report), {"target": str(target), **asdict(report)} if json_output else None)


class Meter:
    """Progress on standard error."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._next = 0.0

    def show(self, step: Step) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SHOW_EVERY_S[self._is_terminal]
        start, end = ("\r\033[K", "") if self._is_terminal else ("", "\n")
        sys.stderr.write(f"{start}{describe_step(step)}{end}")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\033[K")


def describe_step(step: Step) -> str:
    left = f"{_duration(step.seconds_left)} left" if step.bytes_per_s else "starting"
    return f"file {step.number} of {step.num_shards} · {step.bytes_per_s / 1e6:.0f} MB/s · {left}"


def describe_estimate(expected: Estimate) -> str:
    lines = [f"{name:>6} {size / 1e9:10.2f} GB" for name, size in expected.precisions.items()]
    lines += ["", *(f"{file} {size / 1e9:10.3f} GB" for file, size in expected.shards.items()), ""]
    lines.append(f"Disk needed {expected.disk_bytes / 1e9:.2f} GB, free {expected.free_bytes / 1e9:.2f} GB.")
    lines.append(f"Peak memory about {expected.peak_memory_bytes / 1e9:.1f} GB; about {_duration(expected.seconds)}.")
    return "\n".join(lines + _describe_some(UNDIVIDED, expected.undivided))


def describe_report(report: QuantizeReport) -> str:
    """The relative error |w - w'| / |w| by kind of module, and what was left as it was."""
    lines = ["kind               tensors    mean   worst"]
    for kind, (num, mean, worst, name) in report.errors.items():
        lines.append(f"{kind:18} {num:7}  {mean:6.2%}  {worst:6.2%}  {name}")
    for layer, experts in report.fallbacks.items():
        listed = ", ".join(map(str, experts))
        lines.append(f"Layer {layer}: too few tokens reached experts {listed}; rounded to nearest.")
    lines += _describe_some("Rounded to nearest, not by GPTQ", report.rounded)
    lines += _describe_some(UNDIVIDED, report.undivided)
    return "\n".join([*lines, f"{report.num_bytes / 1e9:.2f} GB written."])


def _describe_some(what: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{what}: {names[0]}{more}."]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(text: str, value: object) -> None:
    typer.echo(text)
    if value is not None:
        typer.echo(json.dumps(value, ensure_ascii=False))
