"""The C++ kernels against their definition, the plain torch decoder: each variant that this processor runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import load_model
from model.kernels import build
from model.kernels.build import KernelsUnavailableError, best_variant, load_library
from model.kernels.cpu_decoder import BLOCK_TOKENS, CpuDecoder, Int4Tiles, Threads, linear
from model.quantization import dequantize_int4, pack_int4
from tests.model.conftest import make_model
from tests.model.goldens import ATOL, RTOL

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = list(build.VARIANTS)[list(build.VARIANTS).index(best_variant()) :]


@pytest.fixture(params=VARIANTS)
def threads(request: pytest.FixtureRequest) -> Threads:
    return Threads(2, load_library(request.param))


def make_int4(rows: int, cols: int, group: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """packed [O,I/8], scales [O,N] and the matrix [O,I] f64 that they stand for."""
    packed = pack_int4(torch.randint(-8, 8, (rows, cols), dtype=torch.int8))
    scales = (torch.rand(rows, cols // group) / 50 + 0.001).to(dtype)
    return packed, scales, dequantize_int4(packed, scales, cols, dtype=torch.float64)


SHAPES = [(16, 64, 32), (48, 128, 128), (17, 96, 32), (1, 256, 128), (70, 512, 64), (33, 40, 8)]


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 8, 13, 33])
@pytest.mark.parametrize(("rows", "cols", "group"), SHAPES)
def test_int4_errs_by_the_rounding_of_activations_alone(
    threads: Threads, rows: int, cols: int, group: int, num_tokens: int
) -> None:
    packed, scales, weight = make_int4(rows, cols, group, torch.bfloat16 if rows % 2 else torch.float32)
    x = torch.randn(num_tokens, cols)
    x[:, 1] = 1  # or its rounding to 0 would hide what is spoilt
    spoilt = packed.clone()
    spoilt[0, 0] ^= 0x80  # the second column of the first row moves by 8
    got = linear(Int4Tiles(packed, scales, cols, threads), x, threads).double()
    # Each activation is off by half a step at most, and a step is 1/127 of its group's largest.
    steps = x.double().view(num_tokens, -1, group).abs().amax(-1) / 127
    bound = (steps.repeat_interleave(group, -1) / 2) @ weight.abs().T
    error = (got - x.double() @ weight.T).abs()
    assert bool((error <= bound * 1.0001 + 1e-5).all())
    worse = linear(Int4Tiles(spoilt, scales, cols, threads), x, threads).double()
    assert not torch.equal(worse, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), [(16, 64), (17, 33), (1, 16), (70, 130)])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 8, 19])
def test_plain_weights_are_exact(threads: Threads, rows: int, cols: int, num_tokens: int, dtype: torch.dtype) -> None:
    weight, x = torch.randn(rows, cols).to(dtype), torch.randn(num_tokens, cols)
    got = linear(weight, x, threads)
    assert torch.allclose(got.double(), x.double() @ weight.double().T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["q_ct_int4", "q_gptq_int4"])
def test_a_whole_int4_model_stays_near_the_dequantized_reference(threads: Threads, shared: Path, case: str) -> None:
    folder = shared / "golden" / case
    goldens = load_file(folder / "goldens.safetensors")
    ids, wanted = goldens["input_ids"], goldens["logits"]
    num_rows, length = ids.shape
    tables = blocks_for([length] * num_rows)
    model = load_model(folder, torch.float32)
    decoder = CpuDecoder(model, threads, sum(map(len, tables)), torch.float32)
    out = decoder.forward(ids.tolist(), [0] * num_rows, tables, list(range(num_rows * length)))
    # int8 activations err by 0.5 % a product; where routing agrees in every layer, that is all.
    agrees = torch.ones(num_rows * length, dtype=torch.bool)
    for layer in range(1, model.config.num_hidden_layers):
        golden = goldens[f"router.{layer}.topk_ids"].flatten(0, 1).sort(-1).values
        agrees &= (out.topk_ids[layer].long().sort(-1).values == golden).all(-1)
    assert agrees.float().mean() > 0.6
    error = (out.logits - wanted.flatten(0, 1))[agrees].square().mean().sqrt() / wanted.std()
    assert 1e-4 < error < 0.05


def test_what_the_kernels_cannot_do_is_named_and_the_model_left_whole(shared: Path) -> None:
    model = load_model(shared / "golden" / "q_fp8_block", torch.float32)
    with pytest.raises(KernelsUnavailableError, match="fp8"):
        CpuDecoder(model, Threads(1), 1)
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()


def blocks_for(lengths: list[int]) -> list[list[int]]:
    """Blocks of each sequence, deliberately neither consecutive nor in order."""
    total = sum(-(-n // BLOCK_TOKENS) for n in lengths)
    free = torch.randperm(total).tolist()
    return [[free.pop() for _ in range(-(-n // BLOCK_TOKENS))] for n in lengths]


@pytest.mark.parametrize("case", ["a_tiny", "b_yarn", "c_mtp", "d_bias_sharded"])
def test_the_golden_cases(threads: Threads, shared: Path, case: str) -> None:
    model = load_model(shared / "golden" / case, torch.float32)
    goldens = load_file(shared / "golden" / case / "goldens.safetensors")
    ids = goldens["input_ids"]
    num_rows, length = ids.shape
    tables = blocks_for([length] * num_rows)
    decoder = CpuDecoder(model, threads, sum(map(len, tables)), torch.float32)
    out = decoder.forward(ids.tolist(), [0] * num_rows, tables, list(range(num_rows * length)))
    assert torch.allclose(out.logits.view_as(goldens["logits"]), goldens["logits"], atol=ATOL, rtol=RTOL)
    for layer in range(1, model.config.num_hidden_layers):
        wanted = goldens[f"router.{layer}.topk_ids"].flatten(0, 1).sort(-1).values
        assert torch.equal(out.topk_ids[layer].long().sort(-1).values, wanted)


def test_a_wrong_weight_shows(threads: Threads) -> None:
    model = make_model()
    ids = [list(range(20))]
    before = CpuDecoder(model, threads, 1, torch.float32).forward(ids, [0], [[0]]).logits
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[:, 0] *= 1.01  # type: ignore[union-attr]
    assert not torch.allclose(
        CpuDecoder(model, threads, 1, torch.float32).forward(ids, [0], [[0]]).logits, before, atol=1e-5
    )


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_sequences_side_by_side_in_chunks_and_steps_give_what_each_gives_alone(num_threads: int) -> None:
    model, threads = make_model(), Threads(num_threads)
    texts = [torch.randint(0, 400, (n,)).tolist() for n in (70, 1, 33)]
    with torch.inference_mode():
        wanted = [model(torch.tensor([text])).logits[0, -1] for text in texts]
    tables = blocks_for([len(text) for text in texts])
    decoder = CpuDecoder(model, threads, sum(map(len, tables)), torch.float32)
    # The first in chunks, the last of them beside the others' prefill and a single step.
    decoder.forward([texts[0][:40]], [0], tables[:1])
    decoder.forward([texts[0][40:69], texts[2][:32]], [40, 0], [tables[0], tables[2]])
    out = decoder.forward([texts[0][69:], texts[1], texts[2][32:]], [69, 0, 32], tables)
    for got, logits in zip(out.logits, wanted, strict=True):
        assert torch.allclose(got, logits, atol=1e-4, rtol=1e-4)


def test_bf16_weights_are_those_numbers_exactly(threads: Threads) -> None:
    model = make_model().bfloat16()
    exact = make_model()
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    ids = torch.randint(0, 400, (1, 50))
    with torch.inference_mode():
        wanted = exact(ids).logits[0]
    out = CpuDecoder(model, threads, 2, torch.float32).forward(ids.tolist(), [0], [[1, 0]], list(range(50)))
    assert torch.allclose(out.logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_bf16_cache_rounds_keys_and_values_alone(threads: Threads) -> None:
    model = make_model(first_k_dense_replace=3)  # no router, whose choice a rounding may turn
    ids = torch.randint(0, 400, (1, 50))
    with torch.inference_mode():
        wanted = model(ids).logits[0]
    out = CpuDecoder(model, threads, 2).forward(ids.tolist(), [0], [[1, 0]], list(range(50)))
    error = (out.logits - wanted).abs().max() / wanted.std()
    assert 1e-5 < error < 0.08


def test_the_hidden_state_is_that_after_the_final_norm(threads: Threads) -> None:
    model = make_model()
    out = CpuDecoder(model, threads, 1, torch.float32).forward([[3, 1, 4]], [0], [[0]], output_hidden=True)
    with torch.inference_mode():
        wanted = model(torch.tensor([[3, 1, 4]])).last_hidden[0]
    assert out.hidden is not None
    assert torch.allclose(out.hidden, wanted, atol=1e-5, rtol=1e-4)


def test_without_a_compiler_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILT", tmp_path / ".build")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelsUnavailableError, match="No C\\+\\+ compiler"):
        load_library.__wrapped__("avx2")


def test_a_source_that_does_not_compile_gives_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "decoder.cpp").write_text("#error broken on purpose\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "cpu")
    monkeypatch.setattr(build, "BUILT", tmp_path / ".build")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(KernelsUnavailableError, match="broken on purpose"):
        load_library.__wrapped__("avx2")


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(KernelsUnavailableError, match="'neon'"):
        load_library.__wrapped__("neon")
