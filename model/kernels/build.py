"""Compiles the C++ kernels with the machine's own g++ once, and finds them again by the hash of their sources.

Without a compiler, or on another processor, there are no C++ kernels and `why_not` says why; torch then serves.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "cpu"
BUILT = Path(__file__).parent / ".build"
_FLAGS = [
    *("-O3", "-std=c++20", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
    "-fvisibility-inlines-hidden",
]
# Best first: the flags g++ needs, and the features of the processor they ask for.
VARIANTS = {
    "avx512": (
        ["-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"],
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    ),
    "avx2": (["-march=x86-64-v3"], {"avx2", "fma", "f16c", "bmi2"}),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The compiled kernels: `variant` names the instructions they use, `build` these very sources and flags."""

    handle: ctypes.CDLL
    variant: str
    build: str


class KernelsUnavailableError(ValueError):
    """The C++ kernels cannot be used here; the message says why."""


@functools.cache
def load_library(variant: str | None = None) -> Library:
    """Builds if need be and loads the kernels, by default the best that this processor runs.

    Raises KernelsUnavailableError.
    """
    variant = variant or best_variant()
    if variant not in VARIANTS:
        raise KernelsUnavailableError(f"There are no kernels called {variant!r}; there are {', '.join(VARIANTS)}.")
    path = _build(variant)
    try:
        return Library(ctypes.CDLL(str(path)), variant, path.stem)
    except OSError as error:
        raise KernelsUnavailableError(f"The compiled kernels could not be loaded: {error}.") from error


def best_variant() -> str:
    """The best variant that this processor runs."""
    features = _read_features()
    for name, (_, needed) in VARIANTS.items():
        if needed <= features:
            return name
    raise KernelsUnavailableError("The C++ kernels need an x86-64 processor with AVX2.")


def _read_features() -> set[str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def _build(variant: str) -> Path:
    flags = [*_FLAGS, *VARIANTS[variant][0]]
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    name = f"{variant}-{digest.hexdigest()[:16]}.so"
    for folder in (BUILT, Path.home() / ".cache" / "bedside"):
        if (folder / name).exists():
            return folder / name
    folder = BUILT if os.access(BUILT.parent, os.W_OK) else Path.home() / ".cache" / "bedside"
    folder.mkdir(parents=True, exist_ok=True)
    # Compiled under another name and moved: two processes that start at once must not load half a file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compile_to(Path(scratch) / name, variant)
        os.replace(Path(scratch) / name, folder / name)
    return folder / name


def compile_to(output: Path, variant: str, *further_flags: str) -> None:
    """Compiles the sources into a library. Raises KernelsUnavailableError."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise KernelsUnavailableError("No C++ compiler was found; install g++ and start again.")
    flags = [*_FLAGS, *VARIANTS[variant][0], *further_flags]
    done = subprocess.run(
        [compiler, *flags, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise KernelsUnavailableError(f"The C++ kernels did not compile: {reason}")


def main() -> None:
    """Builds what this processor needs, ahead of the first start; never fails, since torch can serve too."""
    try:
        sys.stdout.write(f"C++ kernels: {load_library().variant}\n")
    except KernelsUnavailableError as error:
        sys.stdout.write(f"C++ kernels: none. {error} Answers are computed by torch, several times slower.\n")


if __name__ == "__main__":
    main()
