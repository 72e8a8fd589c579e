"""Chinese questions find Chinese passages whose words they do not share, also within an English record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from retrieval.benchmark import Collection
from retrieval.bilingual import CHINESE, ENGLISH, BilingualEmbedder
from retrieval.index import VectorIndex
from retrieval.multilingual.corpus import SHARED_CHARS, Screen
from retrieval.multilingual.embedder import TUNED, MultilingualEmbedder, make_tokenizer
from retrieval.multilingual.packed import find_file, open_packed, unpack
from tests.retrieval.conftest import Bench

RECORD: dict[str, dict[str, str]] = yaml.safe_load(
    Path(__file__).with_name("chinese_record.yaml").read_text(encoding="utf-8")
)


def ranks(embedder: BilingualEmbedder, has_vectors: bool, others: dict[str, str] | None = None) -> dict[str, int]:
    """Question -> rank of its passage, from 0."""
    documents = [
        {"doc_id": name, "title": "", "text": text} for name, text in {**RECORD["passages"], **(others or {})}.items()
    ]
    collection = Collection(documents, embedder, has_vectors)
    found = {}
    for question, wanted in RECORD["questions"].items():
        names = [passage.document_id for passage, _ in collection.search(question, len(documents))]
        found[question] = names.index(wanted) if wanted in names else len(documents)
    return found


def share(found: dict[str, int], k: int) -> float:
    return float(np.mean([rank < k for rank in found.values()]))


def test_meaning_finds_what_words_do_not(embedder: BilingualEmbedder) -> None:
    by_words, by_both = ranks(embedder, False), ranks(embedder, True)
    assert by_both["患者对什么药物过敏？"] == 0
    assert share(by_both, 1) >= 0.58
    assert share(by_both, 3) >= 0.8
    assert share(by_words, 3) < 0.65  # or the record asks nothing that takes an embedder


def test_chinese_pages_of_an_english_record_are_found(bench: Bench) -> None:
    note = "# MEDICATIONS\nApixaban 5 mg twice daily. Metoprolol 50 mg daily.\n\n# PLAN\nReview in six weeks. "
    bench.ready("li", "discharge.txt", note + "Cough resolved; lungs clear. " * 40)
    bench.ready("li", "入院记录.txt", "\n\n".join(RECORD["passages"].values()))
    for question, wanted in (("吃东西要注意什么？", "低盐低脂"), ("生过几个孩子？", "孕3产2")):
        found = bench.retriever.search(question, "li", limit=3)
        assert any(wanted in item.passage.text for item in found)
    english = bench.retriever.search("Which blood thinner does the patient take?", "li", limit=1)
    assert "Apixaban" in english[0].passage.text


def test_each_language_has_a_space_and_neighbours_do_not_matter(embedder: BilingualEmbedder) -> None:
    texts = ["头痛三天", "headache for three days", "头痛", "ECG 正常心电图"]
    assert [embedder.space(text) for text in texts] == [CHINESE, ENGLISH, CHINESE, CHINESE]
    together = embedder.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-4)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (together * alone).sum(1).min() > 0.999
    (parts,) = embedder.embed_parts(["Discharge note. 头痛三天，无发热。"], [[(16, 20), (21, 24)]])
    assert parts.shape == (2, 384)
    assert parts[0] @ together[2] > parts[1] @ together[2]
    assert embedder.embed([]).shape == (0, 384)


def test_vectors_of_another_tuning_are_made_anew(tmp_path: Path) -> None:
    changed = tmp_path / "tuned.safetensors"
    changed.write_bytes(TUNED.read_bytes() + b" ")
    old, new = MultilingualEmbedder(tuned=changed).identity, MultilingualEmbedder().identity
    assert new in BilingualEmbedder(threads=1).identity
    index = VectorIndex(tmp_path / "vectors", old)
    index.add("anna", ["d:00000#0"], np.ones((1, 384), dtype=np.float32))
    assert index.ids("anna") == {"d:00000#0"}
    index.close()
    assert VectorIndex(tmp_path / "vectors", new).ids("anna") == set()


def test_packed_file_is_read_as_its_package_reads_it() -> None:
    packed = open_packed(find_file())
    assert (packed.num_layers, packed.hidden_size, packed.vocab_size) == (12, 384, len(packed.scores) + 35)
    block = np.array([[0, 0x3C, *range(16)]], dtype=np.uint8)  # scale 1, bytes 0..15
    np.testing.assert_array_equal(unpack(block)[0], [*range(-8, 8), *[-8] * 16])
    ids = make_tokenizer(packed).encode("passage: 患者，青霉素过敏 (2023年)").ids
    assert ids[0] == packed.begin
    assert ids[-1] == packed.end
    assert packed.unknown not in ids


def test_file_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e5.bin"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no packed encoder"):
        open_packed(path)


def test_nothing_that_is_judged_by_is_learnt() -> None:
    judged = "发热三天伴咳嗽咳痰，自服退热药后缓解。"
    screen = Screen([judged])
    kept = "首先注意休息。"
    assert screen.clean(kept + judged[:SHARED_CHARS] + "，请就诊。" + kept) == kept * 2
    assert screen.clean(judged[: SHARED_CHARS - 1] + "。") == judged[: SHARED_CHARS - 1] + "。"
    assert screen.clean(judged[:6] + " \n" + judged[6:SHARED_CHARS]) == ""
