"""`bedside pack SRC DST`: a copy of a checkpoint in the form that the C++ kernels read, which starts in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands.loading import show_loading


def pack(
    source: Annotated[Path, typer.Argument(help="Folder of a checkpoint in BF16 or INT4.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; an interrupted one is gone on with.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over in a folder this command made.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Stores a checkpoint as the C++ kernels read it; nothing is quantized. Run again, it goes on."""
    from model.packed.pack import pack_checkpoint

    with show_loading(cancelled="interrupted; the same command goes on with the first unfinished file") as on_progress:
        manifest = pack_checkpoint(source, target, overwrite=overwrite, on_progress=on_progress)
    typer.echo(
        f"{manifest.num_bytes / 1e9:.2f} GB written, to be computed in {manifest.dtype}. "
        f"BEDSIDE_CHECKPOINT={target} starts from them."
    )
    if json_output:
        figures = {"target": str(target), "num_bytes": manifest.num_bytes, "files": len(manifest.files)}
        typer.echo(json.dumps({**figures, "source_sha256": manifest.source_sha256, "sha256": manifest.sha256}))
