"""Packed folders: the same logits to the bit however they are held, and no answer from a folder that is not whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from contracts import GenerationError, LoadCancelled, LoadProgress, Message, Role, SamplingParams
from model.backend import count_cache_bytes
from model.checkpoint import PACKED, load_model, save_checkpoint
from model.config import CheckpointError, ModelConfig
from model.cpu_backend import CpuBackend
from model.engine import Engine
from model.generator import EMBEDDED, LocalGenerator
from model.kernels import build
from model.kernels.build import best_variant, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Int4Tiles, Threads, name_layout
from model.kernels.expert_cache import ExpertReadError
from model.packed import load
from model.packed.load import load_packed
from model.packed.manifest import PAGE, count_held_bytes, expert_stride, read_manifest
from model.packed.pack import pack_checkpoint
from model.packed.verify import GuardedBackend, WeightsChangedError
from model.quantization import pack_int4
from model.quantize.folder import OutputError
from model.safetensors_file import SafetensorsFile
from tests.model.conftest import make_model
from tests.model.quantized_checkpoints import encode_fp8, encode_gptq, encode_int4, is_expert, write_quantized

VARIANTS = list(build.VARIANTS)[list(build.VARIANTS).index(best_variant()) :]
NUM_TOKENS = 40
INT4 = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was verified is remembered at home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def make_source(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "int4":
        write_quantized(folder, encode_int4(32), INT4)
    elif kind == "int4 experts":
        write_quantized(folder, encode_int4(16), INT4, is_expert)
    elif kind == "gptq":
        write_quantized(folder, encode_gptq(32), {"quant_method": "gptq", "bits": 4, "group_size": 32})
    elif kind == "tied, mtp":
        changes = {"tie_word_embeddings": True, "num_nextn_predict_layers": 1}
        save_checkpoint(make_model(**changes), folder, torch.float32)
    else:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        save_checkpoint(make_model(num_hidden_layers=6), folder, dtype)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", "f32")


@pytest.fixture
def packed(tmp_path: Path, source: Path) -> Path:
    pack_checkpoint(source, tmp_path / "packed")
    return tmp_path / "packed"


def run(decoder: CpuDecoder) -> Tensor:
    """Logits of a prompt in two chunks, each row, and of some single tokens."""
    ids = torch.randint(0, 400, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    table, parts = [[0, 1]], []
    for begin, end in ((0, 9), (9, 32), *((n, n + 1) for n in range(32, NUM_TOKENS))):
        parts.append(decoder.forward([ids[begin:end]], [begin], table, list(range(end - begin))).logits)
    return torch.cat(parts)


def run_packed(folder: Path, threads: Threads, mode: str, expert_bytes: int | None = None) -> Tensor:
    loaded = load_packed(folder, None, threads.library.variant, mode, expert_bytes)
    return run(CpuDecoder(loaded.model, threads, 2, torch.float32, loaded.experts))


# --- the same numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["f32", "bf16", "int4", "int4 experts", "gptq", "tied, mtp"])
def test_a_packed_folder_gives_the_logits_of_its_source_to_the_bit(tmp_path: Path, kind: str, variant: str) -> None:
    source, threads = make_source(tmp_path / "source", kind), Threads(2, load_library(variant))
    wanted = run(CpuDecoder(load_model(source, torch.float32), threads, 2, torch.float32))
    pack_checkpoint(source, tmp_path / "packed")
    for mode in ("map", "copy", "disk"):
        assert torch.equal(run_packed(tmp_path / "packed", threads, mode), wanted), mode


@pytest.mark.parametrize("mode", ["map", "disk"])
def test_the_mtp_layer_drafts_what_that_of_the_source_does(tmp_path: Path, mode: str) -> None:
    source, threads, drafts = make_source(tmp_path / "source", "tied, mtp"), Threads(2), []
    pack_checkpoint(source, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", mode=mode)
    for model, experts in ((load_model(source), None), (loaded.model, loaded.experts)):
        decoder = CpuDecoder(model, threads, 2, torch.float32, experts)
        out = decoder.forward([list(range(20))], [0], [[0, 1]], output_hidden=True)
        assert out.hidden is not None
        drafts.append(decoder.draft([list(range(1, 21))], [0], [[0, 1]], out.hidden, list(range(20)), [4]))
    assert len(drafts[0][0]) == 4
    assert drafts[1] == drafts[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_room_for_few_experts_changes_nothing_but_what_is_read(source: Path, packed: Path, variant: str) -> None:
    threads, manifest = Threads(2, load_library(variant)), read_manifest(packed)
    wanted = run(CpuDecoder(load_model(source, torch.float32), threads, 2, torch.float32))
    stride = expert_stride(manifest.experts[1])
    loaded = load_packed(packed, None, variant, "disk", 8 * stride)  # a fifth of the 5 x 8 experts
    assert loaded.experts is not None
    assert torch.equal(run(CpuDecoder(loaded.model, threads, 2, torch.float32, loaded.experts)), wanted)
    counts = loaded.experts.counts
    assert counts.num_slots == 8
    assert counts.misses > 40, "every expert had to be read, many of them again"
    assert counts.bytes_read >= counts.misses * stride
    assert counts.prefetched + counts.hits > 0
    assert 0 < counts.guessed_right <= counts.guessed


def test_room_is_left_for_the_cache_as_it_will_be_stored(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, config = read_manifest(packed), ModelConfig.from_hf(packed)
    int8, bf16 = (load.RESERVE_BYTES + count_cache_bytes(config, dtype) for dtype in (torch.int8, torch.bfloat16))
    monkeypatch.setattr(load, "ALWAYS_FITS_BYTES", 0)
    monkeypatch.setattr(load, "available_bytes", lambda: manifest.num_bytes + (int8 + bf16) // 2)
    assert load_packed(packed, cache="int8").mode == "map"
    assert load_packed(packed, cache="bf16").mode == "disk"


def test_with_room_for_all_each_expert_is_read_once(packed: Path) -> None:
    loaded = load_packed(packed, mode="disk", expert_bytes=2**30)
    decoder = CpuDecoder(loaded.model, Threads(2), 2, torch.float32, loaded.experts)
    run(decoder)
    assert loaded.experts is not None
    read = loaded.experts.counts.bytes_read
    assert read <= 40 * loaded.experts.stride
    run(decoder)
    again = loaded.experts.counts
    assert again.bytes_read - read <= 40 * loaded.experts.stride - read  # at most what nobody had chosen yet
    assert again.hits > again.misses


def test_a_conversation_is_the_same_and_says_whose_weights_answered(tmp_path: Path) -> None:
    pack_checkpoint(EMBEDDED, tmp_path / "nano")
    plain = LocalGenerator.load(EMBEDDED)
    texts = []
    for generator in (plain, *(LocalGenerator.load(tmp_path / "nano", weights=mode) for mode in ("auto", "disk"))):
        events = generator.stream([Message(Role.USER, "Which drugs?")], SamplingParams(max_tokens=24))
        texts.append("".join(getattr(event, "text", "") for event in events))
        assert generator.info.weights_sha256 == plain.info.weights_sha256
        assert generator.info.precision == plain.info.precision
        assert generator.info.num_parameters == plain.info.num_parameters
    assert texts[0]
    assert texts[1:] == texts[:1] * 2
    assert generator.info.details["weights"] == "packed, experts from the disk"
    assert generator.engine_load.experts is not None
    assert generator.engine_load.experts.bytes_read > 0


# --- the files ----------------------------------------------------------------------------------------------------


def test_the_files_are_safetensors_with_each_tensor_on_a_page(packed: Path) -> None:
    files = sorted(packed.glob("*.safetensors"))
    assert len(files) == 7
    for path in files:
        with safe_open(path, "pt") as library, SafetensorsFile(path) as ours:
            assert set(library.keys()) == set(ours.tensors)
            begins = {name: info.begin for name, info in ours.tensors.items() if not name.startswith("padding.")}
        assert all(begin % PAGE == 0 for begin in begins.values())
    manifest = read_manifest(packed)
    a_layer = 8 * expert_stride(manifest.experts[1])
    assert manifest.num_bytes == sum(path.stat().st_size for path in files)
    assert count_held_bytes(manifest, make_model().config) == manifest.num_bytes - 4 * a_layer


def test_a_new_layout_has_a_new_name() -> None:
    """Whoever changes how an INT4 matrix is packed changes kLayout in cpu/linear.h, and then these two."""
    draw = torch.Generator().manual_seed(0)
    packed = pack_int4(torch.randint(-8, 8, (48, 128), dtype=torch.int8, generator=draw))
    scales = torch.rand(48, 4, generator=draw).bfloat16()
    digests = set()
    for variant in VARIANTS:
        threads = Threads(1, load_library(variant))
        tiles = Int4Tiles(packed.clone(), scales, 128, threads)
        data = [tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in (tiles.tiles, tiles.scales)]
        digests.add((name_layout(threads.library), hashlib.sha256(b"".join(data)).hexdigest()[:16]))
    assert digests == {("int4-tiles-16x8", "c2def5911a7f9f80")}


@pytest.mark.parametrize(
    ("encode", "quantization", "words"),
    [
        (encode_fp8((32, 32)), {"quant_method": "fp8", "weight_block_size": [32, 32]}, "no kernels yet for fp8"),
        (encode_int4(32, asymmetric=True), INT4, "zero points"),
    ],
)
def test_what_the_kernels_cannot_run_is_not_packed(tmp_path: Path, encode, quantization, words: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "source").mkdir()
    write_quantized(tmp_path / "source", encode, quantization)
    with pytest.raises(CheckpointError, match=words):
        pack_checkpoint(tmp_path / "source", tmp_path / "packed")
    assert not (tmp_path / "packed" / PACKED).exists()


# --- packing, interrupted -----------------------------------------------------------------------------------------


def test_a_cancelled_packing_is_not_taken_for_whole_and_goes_on(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "packed"

    class InTheFourthFile(threading.Event):
        def is_set(self) -> bool:
            return (target / "packed-00003-of-00006.safetensors.partial").exists()

    with pytest.raises(LoadCancelled):
        pack_checkpoint(source, target, cancel=InTheFourthFile())
    finished = {path.name: path.stat().st_ino for path in target.glob("*.safetensors")}
    assert 2 <= len(finished) <= 3
    assert not list(target.glob("*.partial"))
    for load_any in (load_model, LocalGenerator.load):
        with pytest.raises(CheckpointError):
            load_any(target)
    pack_checkpoint(source, target)
    now = {path.name: path.stat().st_ino for path in target.glob("*.safetensors")}
    assert len(now) == 7
    assert sum(now[name] == inode for name, inode in finished.items()) >= 2, "what was finished is not written again"
    wanted = run(CpuDecoder(load_model(source), Threads(1), 2, torch.float32))
    assert torch.equal(run_packed(target, Threads(1), "map"), wanted)


def test_packing_goes_on_only_with_the_same_checkpoint(tmp_path: Path, packed: Path) -> None:
    other = tmp_path / "other"
    save_checkpoint(make_model(seed=1), other, torch.float32)
    with pytest.raises(ValueError, match="another checkpoint"):
        pack_checkpoint(other, packed)
    assert pack_checkpoint(other, packed, overwrite=True).source == "other"
    assert load_packed(packed).model.config.num_hidden_layers == 3


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB more"):
        pack_checkpoint(source, tmp_path / "packed")
    assert not list((tmp_path / "packed").glob("*.safetensors*"))


# --- folders that are not what was written ------------------------------------------------------------------------


def flip_last_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def test_a_damaged_short_or_missing_file_is_refused_by_name(packed: Path) -> None:
    load_packed(packed)
    path = packed / "packed-00002-of-00006.safetensors"
    flip_last_byte(path)
    with pytest.raises(CheckpointError, match=r"packed-00002-of-00006\.safetensors is damaged.*pack the checkpoint"):
        load_packed(packed)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"packed-00002-of-00006\.safetensors has .* bytes, not"):
        load_packed(packed)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"packed-00002-of-00006\.safetensors is missing"):
        load_packed(packed)


def test_another_layout_or_version_asks_to_be_packed_again(packed: Path) -> None:
    manifest = json.loads((packed / PACKED).read_text())
    (packed / PACKED).write_text(json.dumps(manifest | {"layout": "int4-tiles-8x8"}))
    with pytest.raises(CheckpointError, match=r"int4-tiles-8x8.*pack it again from source"):
        load_packed(packed)
    (packed / PACKED).write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(CheckpointError, match="pack the checkpoint again"):
        load_packed(packed)
    (packed / PACKED).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load_packed(packed)


def test_torch_says_that_it_needs_the_source(packed: Path) -> None:
    with pytest.raises(CheckpointError, match="give the folder that it was packed from"):
        load_model(packed)
    with pytest.raises(CheckpointError, match="packed from"):
        load_packed(packed, kernels="reference")


def test_files_are_hashed_again_only_if_they_were_touched(packed: Path) -> None:
    def steps() -> set[str]:
        seen: list[LoadProgress] = []
        load_packed(packed, on_progress=seen.append)
        return {progress.step for progress in seen}

    assert steps() == {"reading"}, "packing has verified them"
    os.utime(packed / "packed-00001-of-00006.safetensors")
    assert steps() == {"verifying", "reading"}
    assert steps() == {"reading"}


# --- behind a running model ---------------------------------------------------------------------------------------


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    pack_checkpoint(EMBEDDED, tmp_path / "nano")
    return tmp_path / "nano"


def answer(generator: LocalGenerator) -> None:
    list(generator.stream([Message(Role.USER, "Which drugs?")], SamplingParams(max_tokens=4)))


@pytest.mark.parametrize("mode", ["map", "copy", "disk"])
def test_a_file_written_to_while_the_model_runs_stops_its_answers(nano: Path, mode: str) -> None:
    generator = LocalGenerator.load(nano, weights=mode)
    flip_last_byte(nano / "packed-00003-of-00008.safetensors")
    for _ in range(2):
        with pytest.raises(WeightsChangedError, match=r"packed-00003-of-00008\.safetensors was changed"):
            answer(generator)


def test_a_mapped_file_that_cannot_be_read_stops_the_answers_and_not_the_program(nano: Path) -> None:
    packed = load_packed(nano, mode="map")
    packed.guard._next_look = math.inf  # the file is cut behind the guard's last look
    engine = Engine(GuardedBackend(CpuBackend(packed.model, Threads(2)), packed.guard), [1])
    os.truncate(nano / "packed-00003-of-00008.safetensors", PAGE)
    for _ in range(2):
        with pytest.raises(WeightsChangedError, match=r"weights in nano could not be read"):
            list(engine.stream([5, 6, 7], SamplingParams(max_tokens=3)))


def test_a_replaced_folder_does_not_disturb_a_running_model(nano: Path) -> None:
    generator = LocalGenerator.load(nano)
    nano.rename(nano.with_name("elsewhere"))
    shutil.rmtree(nano.with_name("elsewhere"))
    answer(generator)


def test_damage_without_a_trace_is_found_by_looking_again(nano: Path) -> None:
    guard = load_packed(nano).guard
    path = nano / "packed-00003-of-00008.safetensors"
    before = path.stat()
    flip_last_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    guard.check()
    guard.verify()
    with pytest.raises(WeightsChangedError, match=r"packed-00003-of-00008\.safetensors is damaged"):
        guard.check()


# --- experts on the disk ------------------------------------------------------------------------------------------


def test_an_expert_that_cannot_be_read_fails_the_request_and_not_the_program(packed: Path) -> None:
    loaded = load_packed(packed, mode="disk")
    engine = Engine(CpuBackend(loaded.model, Threads(2), experts=loaded.experts), [1])
    path = packed / "packed-00004-of-00006.safetensors"
    whole = path.read_bytes()
    os.truncate(path, PAGE)
    for _ in range(2):
        with pytest.raises(ExpertReadError, match=r"layer 3 .*packed-00004-of-00006\.safetensors .*too short"):
            list(engine.stream([5, 6, 7], SamplingParams(max_tokens=3)))
    path.write_bytes(whole)
    assert len(list(engine.stream([5, 6, 7], SamplingParams(max_tokens=3)))) > 1
    assert engine.check_integrity() == []


def test_less_room_than_a_layer_takes_is_refused_with_the_figures(packed: Path) -> None:
    with pytest.raises(GenerationError, match=r"experts of one layer take 0\.00 GB"):
        load_packed(packed, mode="disk", expert_bytes=3 * PAGE)


def test_many_answers_at_once_share_the_slots(packed: Path, source: Path) -> None:
    texts = [[5 + n, 6, 7, 300 - n] for n in range(4)]
    wanted = [generate(Engine(CpuBackend(load_model(source), Threads(1)), [1]), text) for text in texts]
    stride = expert_stride(read_manifest(packed).experts[1])
    loaded = load_packed(packed, mode="disk", expert_bytes=9 * stride)
    engine = Engine(CpuBackend(loaded.model, Threads(2), experts=loaded.experts), [1])
    got: dict[int, list[int | None]] = {}
    clients = [
        threading.Thread(target=lambda n=n, text=text: got.__setitem__(n, generate(engine, text)))
        for n, text in enumerate(texts)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert [got[n] for n in range(4)] == wanted


def generate(engine: Engine, prompt: list[int]) -> list[int | None]:
    events = engine.stream(prompt, SamplingParams(max_tokens=BLOCK_TOKENS))
    return [event.token_id for event in events if hasattr(event, "token_id")]
