"""Every GPU kernel, as AntAngelMed's shapes launch it, compiles for each kind of card, without a card.

The operations run on tensors that have shapes and no memory, and instead of a launch there is a compilation: what is
compiled is what would run.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from model.config import ModelConfig  # noqa: E402
from model.kernels.gpu import buffers, layout, ops  # noqa: E402
from tests.model.conftest import make_config  # noqa: E402

D, H, G, C, E, F, V = 4096, 32, 4, 128, 256, 1024, 157184
META = "meta"
SHARED_KIB = {80: 163, 89: 99, 90: 227}  # a program's, CUDA C++ Programming Guide, "Technical specifications"


@dataclass
class NoCard:
    """Stands where Triton asks which card there is."""

    arch: int = 90

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@dataclass(frozen=True)
class Compiled:
    name: str
    ptx: str
    shared: int
    stack: int  # bytes of local memory: registers that did not suffice
    tile: Any  # of a product
    binary: Path


Compile = Callable[..., list[Compiled]]


@pytest.fixture
def compile_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compile:
    """compile_for(arch, operation): the kernels that it would launch there."""
    card, found, run = NoCard(), list[Any](), JITFunction.run

    def compile_instead(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        found.append((run(kernel, *args, grid=grid, warmup=True, **kwargs), kwargs.get("TILE")))

    monkeypatch.setattr(JITFunction, "run", compile_instead)
    monkeypatch.setattr(triton.runtime.driver, "_active", card)

    def compile_all(arch: int, operation: Callable[[], None]) -> list[Compiled]:
        card.arch = arch
        found.clear()
        operation()
        return [_describe(kernel, tile, tmp_path) for kernel, tile in found]

    return compile_all


def _describe(kernel: Any, tile: Any, folder: Path) -> Compiled:
    binary = folder / f"{kernel.hash}.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", binary)
    stack = int(usage.split("STACK:")[1].split()[0])
    return Compiled(kernel.metadata.name, kernel.asm["ptx"], kernel.metadata.shared, stack, tile, binary)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _find_longest_loop(binary: Path) -> int:
    """Instructions between a label and the last branch back to it."""
    number, longest, labels = 0, 0, dict[str, int]()
    for line in _run(triton.knobs.nvidia.nvdisasm.path, "-c", binary).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = number
        number += bool(re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\S", line))
        if branch := re.search(r"BRA.*`\((\.L_x_\d+)\)", line):
            longest = max(longest, number - labels.get(branch[1], number))
    return longest


def _bf16(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=META)


def _f32(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=META)


def _i32(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device=META)


def _weight(precision: str, *shape: int) -> layout.Weight:
    *lead, rows, columns = shape
    if precision == "bf16":
        return _bf16(*shape)
    if precision == "int4":
        words = torch.empty(*lead, rows // 16, columns // 128, 16 * 32, dtype=torch.int16, device=META)
        return layout.Int4Weight(words, _bf16(*lead, rows // 16, columns // 128 * 16), rows, columns, 128)
    words = torch.empty(*lead, rows // 16, columns // 128, 16 * 64, dtype=torch.int16, device=META)
    return layout.Fp8Weight(words, _f32(*lead, rows // 128, columns // 128), rows, columns)


def _linear(T: int, precision: str, rows: int = 5120) -> None:
    ops.linear(_bf16(T, D), _weight(precision, rows, D), _bf16(T, rows))


def _experts(T: int, precision: str) -> None:
    scratch = buffers.make_expert_scratch(T, 9, E + 1, F, META)
    gate_up, down = _weight(precision, E + 1, 2 * F, D), _weight(precision, E + 1, D, F)
    ops.experts(_bf16(T, D), _i32(T, 9), gate_up, down, _bf16(T, 9, D), scratch)


def _route(T: int) -> None:
    config = _config()
    routing = buffers.Routing.from_config(config, num_shared=1)
    rows, results = (_bf16(T, D), _bf16(T, D), _bf16(D), 1e-6, _bf16(T, D)), (_f32(T, E), _i32(T, 9), _f32(T, 9))
    ops.add_norm_route(*rows, _bf16(E, D), _f32(E), routing, _i32(T), *results, _i32(T))


def _config() -> ModelConfig:
    return make_config(num_experts=E, n_group=8, topk_group=4, num_experts_per_tok=8)


def _norms(T: int) -> None:
    ops.rms_norm(_bf16(T, D), _bf16(D), 1e-6, _bf16(T, D), torch.empty(T, dtype=torch.int64, device=META))
    ops.add_norm(_bf16(T, D), _bf16(T, 1, D), None, _bf16(D), 1e-6, _bf16(T, D))
    ops.add_norm(_bf16(T, D), _bf16(T, 9, D), _f32(T, 9), _bf16(D), 1e-6, _bf16(T, D))


def _pages(kind: str) -> torch.Tensor:
    return buffers.make_cache(1, 4096, G, C, kind, META)[0]


def _rope(kind: str) -> None:
    tables = _bf16(131072, 32), _bf16(131072, 32)
    ops.norm_rope_store(
        _bf16(1, (H + 2 * G) * C), _bf16(C), _bf16(C), 1e-6, *tables, _i32(1), _i32(1), _pages(kind), _bf16(1, H, C)
    )


def _project(T: int, kind: str) -> None:
    rows = (H + 2 * G) * C
    heads = (
        _bf16(C),
        _bf16(C),
        1e-6,
        _bf16(131072, 32),
        _bf16(131072, 32),
        _i32(T),
        _i32(T),
        _pages(kind),
        _bf16(T, H, C),
    )
    ops.project(_bf16(T, D), _weight("int4", rows, D), _bf16(T, rows), _i32(8 * (H + 2 * G)), *heads)


def _decode(T: int, kind: str) -> None:
    scratch = buffers.make_attention_scratch(T, H, G, C, META)
    ops.attend_decode(_bf16(T, H, C), _pages(kind), _i32(T, 4096), _i32(T), _bf16(T, H * C), scratch)


def _prefill(T: int, kind: str) -> None:
    ops.attend_prefill(_bf16(T, H, C), _pages(kind), _i32(1, 4096), _i32(2), _i32(1), T, _bf16(T, H * C))


def _sampling(k: int) -> None:
    is_finite = torch.empty(1, dtype=torch.bool, device=META)
    ops.top_logits(_f32(1, V), _f32(1, k), _i32(1, k), is_finite, buffers.make_keys(1, V, k, META))
    ops.penalize(_f32(1, V), torch.empty(1, V, dtype=torch.bool, device=META), _f32(1))


OPERATIONS: dict[str, Callable[[], None]] = {
    "norms": lambda: _norms(1),
    "sampling": lambda: _sampling(1),
}
for _T in (1, 32, 512):
    OPERATIONS[f"linear int4 {_T}"] = partial(_linear, _T, "int4")
for _T in (1, 32, 512, 8192):
    OPERATIONS[f"experts int4 {_T}"] = partial(_experts, _T, "int4")
for _T in (1, 32, 8192):
    OPERATIONS[f"route {_T}"] = partial(_route, _T)
for _T in (1, 8192):
    for _kind in ("fp8", "bf16"):
        OPERATIONS[f"experts {_kind} {_T}"] = partial(_experts, _T, _kind)
for _T in (1, 64):
    OPERATIONS[f"project {_T}"] = partial(_project, _T, "bf16")
for _kind in buffers.CACHE_KINDS:
    OPERATIONS[f"rope {_kind} cache"] = partial(_rope, _kind)
    OPERATIONS[f"decode {_kind} cache"] = partial(_decode, 1, _kind)
    OPERATIONS[f"prefill {_kind} cache"] = partial(_prefill, 8192, _kind)


# On cards before Hopper each kernel once, in different sizes for the two: another size is the same source with other
# numbers, and all are compiled for Hopper.
BEFORE_HOPPER = {
    80: ("norms", "sampling", "linear int4 32", "experts int4 32", "experts bf16 8192", "route 1", "route 8192",
         "rope int8 cache", "decode int8 cache", "prefill bf16 cache"),
    89: ("norms", "sampling", "linear int4 1", "experts int4 8192", "experts fp8 1", "route 1", "route 8192",
         "rope fp8 cache", "decode fp8 cache", "prefill fp8 cache"),
}  # fmt: skip
COMPILED = [(name, 90) for name in OPERATIONS] + [
    (name, arch) for arch, names in BEFORE_HOPPER.items() for name in names
]


@pytest.mark.parametrize(("name", "arch"), COMPILED)
def test_kernel_compiles(name: str, arch: int, compile_for: Compile) -> None:
    """On Hopper, where a kernel may start before the one ahead has ended, none reads or writes before that."""
    kernels = compile_for(arch, OPERATIONS[name])
    assert kernels
    for kernel in kernels:
        assert kernel.shared <= SHARED_KIB[arch] * 1024
        assert kernel.stack <= (0 if arch == 90 else 64)
        if arch == 90:
            # The router reads its weights and the norm's, attention lengths and tables: no kernel writes those.
            load = "" if kernel.name in ("_route", "_attend_decode") else "ld|"
            access = re.search(rf"({load}st|red|atom)\.\S*global|cp\.async\.c", kernel.ptx)
            assert access
            assert 0 < kernel.ptx.find("griddepcontrol.wait") < access.start()


@pytest.mark.parametrize("name", ["linear int4 1", "experts int4 1", "experts int4 32"])
def test_decode_reads_weights_by_16_bytes_and_unpacks_them_in_pairs(name: str, compile_for: Compile) -> None:
    for kernel in compile_for(90, OPERATIONS[name]):
        if kernel.name != "_sort":
            assert re.search(r"cp\.async\.cg\.shared\.global \[[^;]*0x10", kernel.ptx)
            assert not re.search(r"cp\.async\.c.\.shared\.global \[[^;]*0x[48],", kernel.ptx)
            assert "lop3.b32" in kernel.ptx
            assert "fma.rn.bf16x2" not in kernel.ptx  # 128 + nibble goes to the tensor cores as it is
            assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in kernel.ptx


@pytest.mark.parametrize("name", ["linear int4 1", "experts int4 1"])
def test_decode_is_bound_by_memory_not_by_instructions(name: str, compile_for: Compile) -> None:
    """An H200's multiprocessor gets 18.6 bytes a clock (4.3 TB/s, 132 of them, 1.755 GHz) and issues an instruction of
    four warps a clock: a round of the loop must take fewer clocks than what four read, of 16 rows 1,056 bytes each."""
    for kernel in compile_for(90, OPERATIONS[name]):
        num_bytes = kernel.tile.rows // 16 * 4 * 1056
        assert 100 < _find_longest_loop(kernel.binary) < 0.9 * num_bytes / 18.6


@pytest.mark.parametrize("name", ["linear int4 512", "experts int4 8192", "prefill bf16 cache"])
def test_prefill_runs_on_hoppers_tensor_cores(name: str, compile_for: Compile) -> None:
    for kernel in compile_for(90, OPERATIONS[name]):
        assert kernel.name == "_sort" or "wgmma.mma_async" in kernel.ptx
