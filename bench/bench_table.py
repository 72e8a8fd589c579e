"""The table of the processor: our kernels, llama.cpp beside them in the same minute, and what the memory allows.

    .venv/bin/python -m bench.bench_table [--peer PYTHON] [--work FOLDER] [--rounds 3] [--antangelmed FOLDER]

The peer is not a requirement of the program. It lives in an environment of its own, which --peer or PEER_PYTHON names:

    python3 -m venv PEER && PEER/bin/pip install numpy gguf
    CMAKE_ARGS="-DGGML_NATIVE=ON" PEER/bin/pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36

FOLDER keeps the random weights, 20 GB for the peer and 8.9 GB for ours, packed; without it nothing is loaded from disk.
Both sides hold their 16 B weights in memory at once (18 GB), and take turns of a second or so within each round. A
figure is the median over the rounds, with their range; a ratio is the median of the rounds' ratios and says how many
times better ours is; a share is ours of the limit, which is the bandwidth of the same minute over the bytes that a step
must read. The last thing printed is the table, which is also in bench/results/cpu-table.md and, with every round,
cpu-table.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch

from bench.bench_cpu import arena_bytes, cache_bytes, weight_bytes
from bench.report import RESULTS, ROOT, with_origin
from bench.side import RAISED, Side, SideEndedError, set_priority
from bench.synthetic import EMBEDDED, PRESETS, write_packed
from model.packed.manifest import is_packed

MINI, LARGE = "ling-mini-2.0", "antangelmed"
# Layers: the difference of both slices is four MoE layers without the dense one, the embedding and the head.
SLICE, SHORT_SLICE = 5, 1
TRIAL_LAYERS = 2
ALLOWANCE_BYTES = 1.3e9  # a side, for the embedding, the cache and the program itself
STEPS, LONG_STEPS, STREAM_STEPS = 32, 16, 6
# llama.cpp's threads meet at barriers some 300 times a token, and wait by spinning; each must have a core of its own.
PEER_ENVIRONMENT = {"OMP_WAIT_POLICY": "active", "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. own, peer, limit: a figure a round; peer and limit may be empty. is_rate: more is better.

    Goals, each None where there is none: of the ratio to the peer, of the share of the limit, and of our own figure.
    """

    name: str
    unit: str
    own: Sequence[float]
    peer: Sequence[float] = ()
    limit: Sequence[float] = ()
    is_rate: bool = True
    min_ratio: float | None = None
    min_share: float | None = None
    own_goal: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's."""
        pairs = zip(self.own, self.peer, strict=False)
        ratios = [ours / theirs if self.is_rate else theirs / ours for ours, theirs in pairs]
        return statistics.median(ratios) if ratios else None

    @property
    def share(self) -> float | None:
        """How much of the limit ours reaches."""
        pairs = zip(self.own, self.limit, strict=False)
        shares = [ours / limit if self.is_rate else limit / ours for ours, limit in pairs]
        return statistics.median(shares) if shares else None

    @property
    def is_met(self) -> bool | None:
        """Whether every goal is; None where one of them could not be measured."""
        own = statistics.median(self.own)
        checks = [
            (self.min_ratio, None if self.ratio is None else self.ratio >= (self.min_ratio or 0)),
            (self.min_share, None if self.share is None else self.share >= (self.min_share or 0)),
            (self.own_goal, own >= (self.own_goal or 0) if self.is_rate else own <= (self.own_goal or 0)),
        ]
        results = [result for goal, result in checks if goal is not None]
        if False in results:
            return False
        return None if None in results or not results else True

    def as_cells(self) -> list[str]:
        goals = []
        if self.min_ratio is not None:
            goals.append(f"{self.min_ratio:g}×")
        if self.min_share is not None:
            goals.append(f"{self.min_share:.0%}")
        if self.own_goal == 0:
            goals.append("runs")
        elif self.own_goal is not None:
            goals.append(f"{'≥' if self.is_rate else '≤'} {self.own_goal:g}")
        met = {True: "met", False: "**not met**", None: "–"}[self.is_met]
        return [
            f"{self.name}, {self.unit}",
            _show(self.own),
            _show(self.peer) + (f" ({self.note})" if self.note else ""),
            _show(self.limit),
            "–" if self.ratio is None else f"{self.ratio:.2f}×",
            "–" if self.share is None else f"{self.share:.0%}",
            " and ".join(goals) or "–",
            met,
        ]


def _show(figures: Sequence[float]) -> str:
    """Median and range."""
    if not figures:
        return "–"
    low, middle, high = min(figures), statistics.median(figures), max(figures)
    return _digits(middle) if len(figures) == 1 else f"{_digits(middle)} ({_digits(low)}–{_digits(high)})"


def _digits(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


# --- the sides --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """How llama.cpp is started here. `is_repacked`: its weights are laid out anew at the load, its default."""

    python: str
    work: Path
    is_repacked: bool = True

    def command(self, preset: str, layers: Sequence[int], *more: str) -> list[str]:
        config = self.work / f"{preset}.json"
        config.write_text(json.dumps(PRESETS[preset].to_hf()), encoding="utf-8")
        command = [self.python, str(ROOT / "bench" / "peer_llama.py"), str(config), "--work", str(self.work)]
        layout = [] if self.is_repacked else ["--no-repack"]
        return [*command, "--layers", *map(str, layers), *layout, *more]


@contextmanager
def open_sides(preset: str, layers: Sequence[int], peer: Peer | None) -> Iterator[tuple[Side, Side | None]]:
    """Ours and, if there is one, the peer, both with their weights in memory."""
    config = replace(PRESETS[preset], num_hidden_layers=max(layers))
    needed = (arena_bytes(config) + ALLOWANCE_BYTES) * (1 if peer is None else 2)
    free = psutil.virtual_memory().available
    if free < needed:
        raise SystemExit(
            f"The weights need {needed / 1e9:.0f} GB of memory and {free / 1e9:.0f} GB are free; end other programs"
            f"{'' if peer is None else ', or leave --peer out'}."
        )
    # The peer first: writing and reading its file takes the page cache, which ours does not need.
    other = None if peer is None else Side(peer.command(preset, layers), PEER_ENVIRONMENT)
    own = Side([sys.executable, "-m", "bench.table_own", preset, "--layers", *map(str, layers)])
    try:
        yield own, other
    finally:
        own.close()
        if other is not None:
            other.close()


def find_peer(python: str, work: Path) -> Peer:
    """The peer with its own layout of the weights, or without it where that crashes: it does on some processors."""
    peer = Peer(python, work)
    try:
        side = Side(peer.command(MINI, [TRIAL_LAYERS]), PEER_ENVIRONMENT)
        try:
            side.ask("prefill", layers=TRIAL_LAYERS, tokens=32, repeats=1)
        finally:
            side.close()
    except SideEndedError:
        return replace(peer, is_repacked=False)
    return peer


# --- the rows ---------------------------------------------------------------------------------------------------


class Rounds:
    """Figures of both sides, a round after the other; they take turns in who comes first."""

    def __init__(self, own: Side, peer: Side | None) -> None:
        self._own, self._peer = own, peer
        self.number = 0

    def ask_both(
        self, do: str, own_only: Mapping[str, Any] = MappingProxyType({}), **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Any] | None, float]:
        """Both answers, and the bandwidth, in GB/s, between them."""
        sides = [self._own, self._peer] if self.number % 2 == 0 else [self._peer, self._own]
        answers: dict[Side | None, dict[str, Any]] = {}
        bandwidth = 0.0
        for side in sides:
            if side is not None:
                answers[side] = side.ask(do, **arguments, **(own_only if side is self._own else {}))
            bandwidth = bandwidth or self._own.ask("bandwidth")["gb_s"]
        return answers[self._own], answers.get(self._peer) if self._peer else None, bandwidth


def measure_model(own: Side, peer: Side | None, num_rounds: int, layers: int) -> list[Row]:
    """Decoding, prefill and many streams of the 16 B shapes."""
    config = replace(PRESETS[MINI], num_hidden_layers=layers)
    figures: dict[str, tuple[list[float], list[float], list[float]]] = {}
    rounds = Rounds(own, peer)

    def measure(
        name: str,
        num_tokens: int,
        read: Callable[[float], float] | None,
        do: str,
        own_only: Mapping[str, Any] = MappingProxyType({}),
        **arguments: Any,
    ) -> None:
        """read: from the number of experts a layer of a step to the bytes that it reads. own_only: arguments that the
        peer has no word for."""
        mine, theirs, bandwidth = rounds.ask_both(do, own_only, layers=layers, **arguments)
        ours, others, limits = figures.setdefault(name, ([], [], []))
        ours.append(num_tokens / statistics.median(mine["seconds"]))
        if theirs is not None:
            others.append(num_tokens / statistics.median(theirs["seconds"]))
        if read is not None:
            limits.append(num_tokens * bandwidth * 1e9 / read(mine["experts"]))

    def reads(num_cached: int, dtype: torch.dtype = torch.bfloat16) -> Callable[[float], float]:
        return lambda experts: weight_bytes(config, experts) + cache_bytes(config, num_cached, dtype)

    for rounds.number in range(num_rounds):
        say(f"16 B shapes, round {rounds.number + 1} of {num_rounds}")
        measure("short", 1, reads(100), "decode", depth=100, streams=1, steps=STEPS)
        measure("long", 1, reads(2048), "decode", depth=2048, streams=1, steps=LONG_STEPS)
        int8 = {"cache": "int8"}
        measure("int8", 1, reads(2048, torch.int8), "decode", int8, depth=2048, streams=1, steps=LONG_STEPS)
        measure("prefill", 512, None, "prefill", tokens=512, repeats=1)
        measure("streams", 32, reads(32 * 100), "decode", depth=100, streams=32, steps=STREAM_STEPS)
        many8 = reads(32 * 100, torch.int8)
        measure("streams8", 32, many8, "decode", int8, depth=100, streams=32, steps=STREAM_STEPS)
    return [
        Row("decode at a context of 100", "tok/s", *figures["short"], min_ratio=2.0, min_share=0.75),
        Row("decode at a context of 2,048", "tok/s", *figures["long"], min_ratio=2.8),
        Row("the same, keys and values in int8", "tok/s", *figures["int8"], min_ratio=2.8),
        Row("prefill of 512", "tok/s", *figures["prefill"], min_ratio=3.1),
        Row("32 streams together", "tok/s", *figures["streams"], min_ratio=2.9),
        Row("the same, keys and values in int8", "tok/s", *figures["streams8"], min_ratio=2.9),
    ]


def measure_products(own: Side, num_rounds: int) -> list[Row]:
    """One product with weights that no cache holds, beside torch's and bitsandbytes'."""
    others = Side([sys.executable, "-m", "bench.gemv_peers"], {"OMP_WAIT_POLICY": "active", "OMP_PROC_BIND": "true"})
    ours: dict[str, list[float]] = {}
    theirs: dict[str, dict[str, list[float]]] = {}
    limits: list[float] = []
    try:
        for number in range(num_rounds):
            say(f"products, round {number + 1} of {num_rounds}")
            limits.append(own.ask("bandwidth")["gb_s"])
            for shape, rate in own.ask("gemv")["gb_s"].items():
                ours.setdefault(shape, []).append(rate)
            for name, rates in others.ask("gemv").items():
                for shape, rate in rates.items():
                    theirs.setdefault(shape, {}).setdefault(name, []).append(rate)
    finally:
        others.close()
    rows = []
    for shape, rates in ours.items():
        best = max(theirs[shape], key=lambda name: statistics.median(theirs[shape][name]))
        rest = "; ".join(f"{name} {_show(theirs[shape][name])}" for name in theirs[shape] if name != best)
        note = f"{best}; {rest}"
        rows.append(Row(f"one product {shape}", "GB/s", rates, theirs[shape][best], limits, min_share=0.85, note=note))
    return rows


def measure_slices(own: Side, peer: Side | None, num_rounds: int) -> Row:
    """Milliseconds of one MoE layer of AntAngelMed's shapes: what four layers more cost, by four."""
    config = PRESETS[LARGE]
    layer_bytes = [
        weight_bytes(replace(config, num_hidden_layers=number), config.num_experts_per_tok)
        for number in (SHORT_SLICE, SLICE)
    ]
    a_layer = (layer_bytes[1] - layer_bytes[0]) / (SLICE - SHORT_SLICE)
    ours: list[float] = []
    theirs: list[float] = []
    limits: list[float] = []
    rounds = Rounds(own, peer)
    for rounds.number in range(num_rounds):
        say(f"AntAngelMed's layers, round {rounds.number + 1} of {num_rounds}")
        seconds: list[list[float]] = [[], []]
        for layers in (SHORT_SLICE, SLICE):
            mine, other, bandwidth = rounds.ask_both("decode", layers=layers, depth=100, streams=1, steps=STEPS)
            for number, answer in enumerate((mine, other)):
                if answer is not None:
                    seconds[number].append(statistics.median(answer["seconds"]))
        limits.append(a_layer / bandwidth / 1e6)
        for figures, pair in zip((ours, theirs), seconds, strict=True):
            if pair:
                figures.append((pair[1] - pair[0]) / (SLICE - SHORT_SLICE) * 1e3)
    return Row("one MoE layer of AntAngelMed's shapes", "ms", ours, theirs, limits, is_rate=False, own_goal=1.9)


def measure_loading(work: Path, peer: Peer | None, num_rounds: int) -> list[Row]:
    """From the start of a process to its first token, with the file in the page cache; and its memory then."""
    folder = work / f"{MINI}-packed"
    if not is_packed(folder):
        write_packed(PRESETS[MINI], folder)
    files = sorted(folder.glob("*.safetensors"))
    own_bytes = sum(file.stat().st_size for file in files)
    own = [sys.executable, "-m", "bench.table_own", str(folder), "--first-token"]
    figures: dict[str, tuple[list[float], list[float]]] = {"seconds": ([], []), "memory": ([], [])}
    for number in range(num_rounds):
        say(f"loading, round {number + 1} of {num_rounds}")
        warm(files)
        seconds, answer = run_once(own)
        figures["seconds"][0].append(seconds)
        figures["memory"][0].append(answer["rss_gb"] * 1e9 / own_bytes)
        if peer is not None:
            layers = PRESETS[MINI].num_hidden_layers
            warm([work / f"{MINI}-{layers}.gguf"])
            seconds, answer = run_once(peer.command(MINI, [layers], "--first-token"), PEER_ENVIRONMENT)
            figures["seconds"][1].append(seconds)
            figures["memory"][1].append(answer["rss_gb"] / answer["file_gb"])
    return [
        Row("resident memory after the load", "of the file", *figures["memory"], is_rate=False, own_goal=1.1),
        Row("file in the page cache to first token", "s", *figures["seconds"], is_rate=False, own_goal=4),
    ]


def run_once(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of a process to the last line it prints, and that line's JSON."""
    line, seconds = "", 0.0
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        set_priority(process.pid, RAISED)
        assert process.stdout is not None
        for text in process.stdout:
            line, seconds = text, time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(line)
    return seconds, answer


def warm(files: Sequence[Path]) -> None:
    """Reads files into the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(2**24):
                pass


def measure_checkpoint(folder: Path, name: str, num_rounds: int, goal: float | None) -> Row:
    """Tokens/s of a checkpoint in the real engine, as `bedside bench decode` gives them."""
    rates = []
    for number in range(num_rounds):
        say(f"{name}, round {number + 1} of {num_rounds}")
        command = [sys.executable, "-m", "app.cli", "bench", "decode", "--json"]
        _, answer = run_once(command, {"BEDSIDE_CHECKPOINT": str(folder)})
        rates.append(answer["tokens_per_s"])
    return Row(name, "tok/s", rates, own_goal=goal)


# --- the whole --------------------------------------------------------------------------------------------------

HEADER = ("what", "ours", "llama.cpp", "limit", "ratio", "share", "goal", "")


def render(rows: Sequence[Row], heading: str) -> str:
    lines = [HEADER, tuple("---" for _ in HEADER), *[row.as_cells() for row in rows]]
    return "\n".join([heading, "", *[f"| {' | '.join(cells)} |" for cells in lines]])


def describe(report: dict[str, Any]) -> str:
    """The sentence above the table: where, when, on what."""
    machine, peer = report["machine"], report["peer"]
    beside = "llama.cpp is not installed: see --peer" if peer is None else f"llama-cpp-python {peer['version']}"
    if peer is not None:
        beside += ", weights laid out anew at the load" if peer["is_repacked"] else ", weights as in the file"
    priority = "raised priority" if report["has_priority"] else "normal priority: other programs count against both"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, 2 threads pinned, {priority}; commit {report['commit']}, "
        f"{report['at']}; {beside}. Ling-mini-2.0's shapes (16 B, {report['layers']} layers), INT4 in groups of 128, "
        f"random weights, unless a row says otherwise. Bandwidth {_show(report['bandwidth_gb_s'])} GB/s. Other "
        f"programs kept {_show(report['cores_of_others'])} cores busy meanwhile. Medians and ranges of "
        f"{report['rounds']} rounds."
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=os.environ.get("PEER_PYTHON"), help="a Python that has llama-cpp-python")
    parser.add_argument("--work", type=Path, help="folder for random weights; needed by --peer and for loading")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--layers", type=int, default=PRESETS[MINI].num_hidden_layers, help="fewer for a first look, without results"
    )
    parser.add_argument("--antangelmed", type=Path, help="folder of the INT4 checkpoint, to decode from disk")
    arguments = parser.parse_args()
    if arguments.peer and not arguments.work:
        parser.error("--peer needs --work, a folder for the weights it reads")
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
    is_whole = arguments.layers == PRESETS[MINI].num_hidden_layers
    peer = find_peer(arguments.peer, arguments.work.resolve()) if arguments.peer else None
    with open_sides(MINI, [arguments.layers], peer) as (own, other):
        rows = measure_model(own, other, arguments.rounds, arguments.layers)
        products = measure_products(own, arguments.rounds)
        has_priority, cores_of_others = own.has_priority, own.cores_of_others
        version = other.hello["version"] if other else ""
    rows += products
    if is_whole and arguments.work:
        rows += measure_loading(arguments.work.resolve(), peer, arguments.rounds)
    rows.append(measure_checkpoint(EMBEDDED, "embedded model, decode", arguments.rounds, 300))
    if is_whole:
        with open_sides(LARGE, [SHORT_SLICE, SLICE], peer) as (own, other):
            rows.append(measure_slices(own, other, arguments.rounds))
    if arguments.antangelmed:
        rows.append(measure_checkpoint(arguments.antangelmed.resolve(), "AntAngelMed in INT4 from disk", 1, 0))
    report = with_origin(
        {
            "what": "cpu-table",
            "layers": arguments.layers,
            "rounds": arguments.rounds,
            "peer": None if peer is None else {"version": version, "is_repacked": peer.is_repacked},
            "has_priority": has_priority,
            "cores_of_others": [round(cores, 2) for cores in cores_of_others],
            "bandwidth_gb_s": [round(rate, 1) for rate in products[0].limit],
            "rows": [asdict(row) | {"ratio": row.ratio, "share": row.share, "is_met": row.is_met} for row in rows],
        }
    )
    table = render(rows, describe(report))
    if is_whole:
        (RESULTS / "cpu-table.json").write_text(
            json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        (RESULTS / "cpu-table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    try:
        main()
    except SideEndedError as error:
        sys.exit(str(error))
