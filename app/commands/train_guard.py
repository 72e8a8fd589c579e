"""`bedside train guard`: adapters, heads, thresholds and tagger of names, from public sets and our sentences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safety.guard.corpus import Example

SETS = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside the checkout, where the tests look as well
STEPS = ("encoder", "thresholds", "names")
DEVICES = ("cpu", "cuda")


def guard(
    data: Annotated[Path, typer.Option(help="Folder of the public sets.")] = SETS,
    step: Annotated[list[str] | None, typer.Option(help="encoder, thresholds or names; all if none is named.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="minilm, e5 or mpnet; all if none is named.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the encoders.")] = "cpu",
    one_more: Annotated[
        bool, typer.Option("--one-more", help="One more round from the weights that are here.")
    ] = False,
) -> None:
    """The classifiers of the safety layer: weights and thresholds are written where the program reads them."""
    from safety.guard.check import ENCODERS

    if not data.is_dir():
        raise InputError(f"{data} is no folder; name the folder of the public sets with --data.")
    wanted = step or list(STEPS)
    if unknown := [name for name in wanted if name not in STEPS]:
        raise InputError(f"Unknown step {unknown[0]!r}; use {', '.join(STEPS)}.")
    if strange := [name for name in encoder or () if name not in ENCODERS]:
        raise InputError(f"Unknown encoder {strange[0]!r}; use {', '.join(ENCODERS)}.")
    if device not in DEVICES:
        raise InputError(f"Unknown device {device!r}; use {' or '.join(DEVICES)}.")
    try:
        if "encoder" in wanted:
            _train_encoder(data, encoder or ENCODERS, device, one_more)
        if "thresholds" in wanted:
            _calibrate(data)
        if "names" in wanted:
            _train_names(data)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; give the folder of the public sets with --data.") from error


def _train_encoder(data: Path, names: Sequence[str], device: str, is_one_more: bool) -> None:
    import torch

    from app.safety_layer import GUARD_BASES
    from safety.guard.check import weights_of
    from safety.guard.conformal import TARGETS
    from safety.guard.corpus import read_corpus, training_set
    from safety.guard.training import PLANS, SEED, fit, one_more

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("No GPU is to be found; use --device cpu.")
    examples: list[tuple[int, Example]] = []
    for number, target in enumerate(TARGETS):
        examples += [(number, example) for example in training_set(read_corpus(target, data), target, SEED)]
    typer.echo(f"{len(examples):,} examples", err=True)
    for name in names:
        path = weights_of(name)
        plan, start = (one_more(PLANS[name]), path) if is_one_more else (PLANS[name], None)
        base = GUARD_BASES[name]
        readable = [(number, example) for number, example in examples if base.reads(example.text)]
        fit(base, readable, plan, _show_step, device, start).save(path)


def _show_step(step: int, steps: int, loss: float) -> None:
    if step % 100 == 0 or step == steps:
        typer.echo(f"step {step:,} of {steps:,}, loss {loss:.3f}", err=True)


def _calibrate(data: Path) -> None:
    from app.safety_layer import GUARD_BASES
    from safety.guard.calibration import choose_thresholds, describe, score_examples, write_thresholds
    from safety.guard.check import ENCODERS, THRESHOLDS, weights_of
    from safety.guard.conformal import TARGETS
    from safety.guard.corpus import read_corpus
    from safety.guard.encoder import GuardEncoder

    unseen = {t: [example for example in read_corpus(t, data) if example.split != "train"] for t in TARGETS}
    guard = GuardEncoder({weights_of(name): GUARD_BASES[name] for name in ENCODERS})
    logits = score_examples(guard, unseen)
    thresholds = {n: v for t in TARGETS for n, v in choose_thresholds(t, unseen[t], logits[t]).items()}
    for target in TARGETS:
        typer.echo("\n".join(describe(target, unseen[target], logits[target], thresholds)))
    write_thresholds(THRESHOLDS, thresholds)


def _train_names(data: Path) -> None:
    from safety.guard.names_training import read_tagged, save, train
    from safety.identifiers_names import WEIGHTS

    save(train([tagged for tagged in read_tagged(data) if tagged.split == "train"]), WEIGHTS)
    typer.echo(f"{WEIGHTS.name} written", err=True)
