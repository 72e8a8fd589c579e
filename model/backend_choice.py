"""Which backend runs a model here: the C++ kernels, a card's, or torch where neither can."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from model.backend import Backend, find_cache_dtype
from model.cpu_backend import CpuBackend
from model.gpu_backend import GpuBackend, choose_hot, load_ops
from model.kernels.build import KernelsUnavailableError, load_library
from model.kernels.cpu_decoder import Threads
from model.kernels.expert_cache import ExpertCache
from model.modeling import BailingMoeV2ForCausalLM
from model.torch_backend import TorchBackend

DEVICES = ("auto", "cpu", "cuda")


def choose_device(wanted: str, kernels: str = "auto") -> torch.device:
    """Where to compute, for one of DEVICES: "auto" takes a CUDA card where there is one and no C++ kernels were asked
    for by name. Raises ValueError for a card that is not there."""
    if wanted not in DEVICES:
        raise ValueError(f"The device is {wanted!r}; use one of {', '.join(DEVICES)}.")
    has_card = torch.cuda.is_available()
    if wanted == "cuda" and not has_card:
        raise ValueError(
            "The device is 'cuda', but torch finds no CUDA card here; use auto, or install torch for CUDA."
        )
    if wanted == "cuda" and kernels not in ("auto", "reference"):
        raise ValueError(f"The kernels {kernels!r} are the processor's; leave them on auto for a card.")
    is_card = wanted == "cuda" or (wanted == "auto" and has_card and kernels in ("auto", "reference"))
    return torch.device("cuda", 0) if is_card else torch.device("cpu")


def make_backend(
    model: BailingMoeV2ForCausalLM,
    num_threads: int | None,
    kernels: str = "auto",
    experts: ExpertCache | None = None,
    cache: str = "auto",
    device: torch.device | None = None,
    baseline: Mapping[int, Sequence[float]] | None = None,
    has_mtp: bool = False,
) -> Backend:
    """The best backend for this model here. kernels: "auto", "reference", or a variant of model.kernels.build.
    num_threads: None lets the C++ kernels choose as they go, between one per core and half as many. experts: where the
    routed experts of a model that holds none are read from. cache: one of CACHES, what keys and values are stored as;
    "auto" is f32 for a model computed in f32, else bf16. int8 takes half of that and is read twice as fast. device: by
    default where the model lies; on a card, experts that it has no room for stay with the processor, by the loads of
    `baseline` the least chosen ones. has_mtp: whether the MTP layer is wanted there.

    Raises KernelsUnavailableError if a variant asked for by name cannot be had, "auto" then serves by torch; ValueError
    for a cache that torch has not.
    """
    find_cache_dtype(cache, model.model.norm.weight.dtype)  # an unknown one, before any thread is started
    device = device or model.device
    if device.type != "cpu":
        return _make_card_backend(model, kernels, cache, device, baseline, has_mtp)
    if kernels == "reference":
        return TorchBackend(model, cache=cache)
    try:
        library = load_library(None if kernels == "auto" else kernels)
        threads = Threads(num_threads or os.cpu_count() or 1, library)
        can_choose = num_threads is None and threads.num_threads > 1
        fewer = Threads(threads.num_threads // 2, library) if can_choose else None
        return CpuBackend(model, threads, fewer, experts, cache)
    except KernelsUnavailableError as error:
        if kernels != "auto":
            raise
        return TorchBackend(model, str(error), cache)


def _make_card_backend(
    model: BailingMoeV2ForCausalLM,
    kernels: str,
    cache: str,
    device: torch.device,
    baseline: Mapping[int, Sequence[float]] | None,
    has_mtp: bool,
) -> Backend:
    why = ""
    if kernels == "auto":
        try:
            ops = load_ops()
            hot = choose_hot(model, torch.cuda.mem_get_info(device)[0], baseline)
            return GpuBackend.take(model, device, cache, hot=hot, ops=ops, has_mtp=has_mtp)
        except KernelsUnavailableError as error:
            why = str(error)
    return TorchBackend(model.to(device), why, cache)
