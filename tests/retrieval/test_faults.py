"""A full disk and a killed process, for real, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from contracts import DocumentStatus
from retrieval.bilingual import BilingualEmbedder
from retrieval.documents import DocumentLibrary
from retrieval.index import VectorIndex
from retrieval.search import HybridRetriever
from retrieval.vectors import row_ids
from tests.retrieval.conftest import Bench
from tests.retrieval.doubles import AllowingChecker, FileStore, MemoryStore

ROOT = Path(__file__).resolve().parents[2]
VISIT = "# VISIT {0}\nSeen on day {0} for heart failure; weight {0} kg, no oedema, furosemide 40 mg. "

START = f"""
import sys
from pathlib import Path
from retrieval.documents import DocumentLibrary
from retrieval.bilingual import BilingualEmbedder
from retrieval.index import VectorIndex
from retrieval.search import HybridRetriever
from retrieval.vectors import row_ids
from tests.retrieval.doubles import AllowingChecker, FileStore, WordEmbedder

folder = Path(sys.argv[1])
embedder = WordEmbedder() if sys.argv[2] == "words" else BilingualEmbedder(threads=1)
store, index = FileStore(folder / "store"), VectorIndex(folder / "chroma")
library = DocumentLibrary(store, index, embedder, AllowingChecker())
small = library.ingest(library.add("anna", "small.txt", b"Penicillin causes anaphylaxis.").id)
long = "\\n\\n".join({VISIT!r}.format(n) * 6 for n in range(150)).encode()
"""

DISK_FULL = """
import resource
document = library.add("anna", "long.txt", long)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
class Store(type(store)):
    def _save(self): pass  # another disk: the one under test is the index's
store.__class__ = Store
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, unlimited[1]))
failed = library.ingest(document.id)
print(failed.status.value, "|", failed.error)
retriever = HybridRetriever(store, index, embedder)
print(retriever.search("penicillin", "anna")[0].passage.text)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
library.repair()
print(index.ids("anna") == row_ids(store.list_passages("anna")))
print(library.ingest(document.id).status.value)
print(index.ids("anna") == row_ids(store.list_passages("anna")))
"""

INGEST = """
def tell(step, done, total):
    print(step, done, total, flush=True)
library.ingest(library.add("anna", "long.txt", long).id, tell)
"""


def start(code: str, folder: Path, embedder: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command: Sequence[str] = [sys.executable, "-c", START + textwrap.dedent(code), str(folder), embedder]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes)


def test_full_disk_fails_the_document_and_keeps_the_rest_searchable(tmp_path: Path) -> None:
    process = start(DISK_FULL, tmp_path, "words")
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    outcome, found, repaired, retried, consistent = output.splitlines()
    status, sentence = outcome.split(" | ")
    assert status == "failed"
    assert "disk" in sentence
    assert sentence.endswith(".")
    assert found == "Penicillin causes anaphylaxis."
    assert (repaired, retried, consistent) == ("True", "ready", "True")


def test_little_space_left_is_told_before_the_index_is_touched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ready("anna", "small.txt", "Penicillin causes anaphylaxis.")
    before = bench.index.ids("anna")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    document = bench.library.ingest(bench.library.add("anna", "more.txt", b"Metformin 500 mg twice daily.").id)
    assert document is not None
    assert document.status is DocumentStatus.FAILED
    assert document.error.startswith("The disk is full")
    assert bench.index.ids("anna") == before
    assert bench.retriever.search("penicillin", "anna")


def test_killed_while_indexing_the_next_start_finishes_the_work(tmp_path: Path, embedder: BilingualEmbedder) -> None:
    process = start(INGEST, tmp_path, "minilm")
    assert process.stdout is not None
    for line in process.stdout:
        step, done, total = line.split()
        if step == "indexing" and int(done) >= int(total) // 3:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    store: MemoryStore = FileStore(tmp_path / "store")
    index = VectorIndex(tmp_path / "chroma")
    library = DocumentLibrary(store, index, embedder, AllowingChecker())
    report = library.repair()
    assert report.resumed == ("long.txt",)
    assert {document.status for document in store.list_documents()} == {DocumentStatus.READY}
    assert index.ids("anna") == row_ids(store.list_passages("anna"))
    found = HybridRetriever(store, index, embedder).search("weight on day 149", "anna")
    assert "VISIT 149" in found[0].passage.text
    index.close()
