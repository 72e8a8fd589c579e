"""The embedder gives unit vectors that place like beside like, from the installed weights alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from retrieval.embedding import VECTOR_SIZE, MiniLMEmbedder, TransformerEmbedder, find_model, find_weights


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    return MiniLMEmbedder(threads=1)


def test_vectors_are_normalised_and_near_for_near_meaning(embedder: MiniLMEmbedder) -> None:
    vectors = embedder.embed(["chest pain", "angina pectoris", "the stock market fell", "word " * 900, ""])
    assert vectors.shape == (5, VECTOR_SIZE)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert embedder.embed([]).shape == (0, VECTOR_SIZE)


def test_vectors_do_not_depend_on_their_neighbours(embedder: MiniLMEmbedder) -> None:
    texts = [f"finding {n} " * (n + 1) for n in range(20)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (together * alone).sum(1).min() > 0.999


def test_vectors_equal_full_precision(embedder: MiniLMEmbedder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["Metoprolol 50 mg twice daily for hypertension.", "No known drug allergies."]
    tokenizer = AutoTokenizer.from_pretrained(find_weights())
    model = AutoModel.from_pretrained(find_weights(), dtype=torch.float32)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    assert (expected * embedder.embed(texts)).sum(1).min() > 0.999


def test_many_threads_get_their_own_vectors(embedder: MiniLMEmbedder) -> None:
    texts = [f"note number {n}" for n in range(6)]
    expected = embedder.embed(texts)
    found: dict[int, float] = {}

    def work(n: int) -> None:
        found[n] = float(embedder.embed([texts[n]])[0] @ expected[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(found.values()) > 0.999
    assert len(found) == 6


def test_importing_the_library_loads_nothing_heavy_and_prints_nothing() -> None:
    code = (
        "import sys, retrieval.documents, retrieval.search, retrieval.embedding, retrieval.packing\n"
        "heavy = {'torch', 'transformers', 'chromadb', 'docx', 'bs4', 'sentence_transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_part_is_read_within_its_passage(embedder: MiniLMEmbedder) -> None:
    text = "Anna Lee. ALLERGIES\nPenicillin: anaphylaxis. Negative for latex."
    start = text.index("Negative")
    (parts,) = embedder.embed_parts([text], [[(20, start - 1), (start, len(text))]])
    np.testing.assert_allclose(np.linalg.norm(parts, axis=1), 1.0, atol=1e-4)
    question = embedder.embed(["allergic to latex?"])[0]
    assert parts[1] @ question > parts[0] @ question
    alone = embedder.embed(["Negative for latex."])[0]
    assert parts[1] @ alone < 0.999  # the heading has a say


def test_part_beyond_what_is_read_has_the_vector_of_the_whole(embedder: MiniLMEmbedder) -> None:
    text = "word " * 400
    (parts,) = embedder.embed_parts([text], [[(0, 20), (1500, 1600)]])
    assert parts[1] @ embedder.embed([text])[0] > 0.999


def test_any_encoder_can_take_its_place_and_is_pooled_as_its_folder_says(
    embedder: MiniLMEmbedder, tmp_path: Path
) -> None:
    for file in find_weights().iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    other = TransformerEmbedder(find_model(str(tmp_path)), threads=1)
    assert (other.embed(["chest pain"]) @ embedder.embed(["chest pain"]).T).item() > 0.999
    assert other.identity != embedder.identity
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    first = TransformerEmbedder(tmp_path, threads=1)
    text = "chest pain. no fever."
    assert (first.embed([text]) @ embedder.embed([text]).T).item() < 0.98
    (parts,) = first.embed_parts([text], [[(0, 11), (12, 21)]])
    np.testing.assert_allclose(parts, first.embed(["chest pain.", "no fever."]), atol=0.02)


def test_embedder_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        find_model(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is neither"):
        find_model("nobody/nothing")
