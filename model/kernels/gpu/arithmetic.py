"""bf16 and e4m3 as a card computes them, in the interpreter too.

Triton's interpreter (3.9.0) multiplies two bf16 tensors by their raw bits, truncates float32 to bf16, converts integers
to bf16 wrongly and rounds to e4m3 wrongly at the edge of a binade. Kernels call these functions instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def find_arch() -> int:
    """Compute capability of the card, as 90; in the interpreter too, so that it runs what a Hopper card would."""
    return 90 if INTERPRETED.value else int(triton.runtime.driver.active.get_current_target().arch)


def launch_options() -> dict[str, bool]:
    """Of every launch: a b + c is rounded once, whatever Triton's default; and on Hopper a kernel may start before the
    one ahead of it has ended (programmatic dependent launch), since all of them call wait_for_inputs."""
    return {"enable_fp_fusion": True, "launch_pdl": find_arch() >= 90}


@triton.jit
def wait_for_inputs():
    """To be called before a kernel's first access to what others write: what was launched ahead has ended and is
    visible. Only then may what follows come as near, so that its launch costs no time of its own; called while this one
    still waits, it made a step a tenth slower on an H200 (docs/gpu-kernels.md)."""
    if not INTERPRETED and tl.target_info.cuda_capability_geq(9, 0):
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def prefetch(ptrs):
    """Asks for the lines of 128 bytes that ptrs point into to come to the L2 cache. Safe before wait_for_inputs: should
    somebody write them yet, that is where it happens."""
    if not INTERPRETED:
        asm: tl.constexpr = "prefetch.global.L2 [$1]; mov.u32 $0, 0;"
        tl.inline_asm_elementwise(asm, "=r,l", [ptrs.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def dot(a, b, acc):
    """acc + a b of bf16, accumulated in float32."""
    if INTERPRETED:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def scale_bf16(x, scale):
    """bf16 x times a scale that is exact in bf16, rounded once."""
    if INTERPRETED:
        scaled = to_bf16(x.to(tl.float32) * scale)
    else:
        scaled = x * scale.to(tl.bfloat16)
    return scaled


@triton.jit
def to_bf16(x):
    """float32 to the nearest bf16, ties to even."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(tl.bfloat16)


@triton.jit
def to_e4m3(x):
    """float32 within [-448, 448] to the nearest e4m3, ties to even."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
        magic = 3 << 13  # 24576: its last bit is worth 1/512, as are all e4m3 below 1/64
        x = tl.where(tl.abs(x) < 0.015625, (x + magic) - magic, normal)
    return x.to(tl.float8e4nv)


@triton.jit
def round_to(x, ptr):
    """float32 x as what ptr points to: float32 or bf16."""
    if ptr.dtype.element_ty == tl.bfloat16:
        x = to_bf16(x)
    return x
