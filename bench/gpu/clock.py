"""Times on the card: CUDA events around replays of a graph, so that neither Python nor a cold start is in them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

REPLAYS = 15
WARM_SECONDS = 0.03
SHOW_CACHES = 3  # a rotation reads at least so many times what the second-level cache holds


class Clock:
    """On a device; on the CPU, for a dry run, calls are timed as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.is_card = device.type == "cuda"
        self.cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if self.is_card else 0

    def num_sets(self, bytes_a_call: float, at_most: int = 64) -> int:
        """How many inputs to rotate through, so that no call finds its own in the cache."""
        if not self.is_card:
            return 2
        return max(2, min(at_most, int(SHOW_CACHES * self.cache_bytes / max(bytes_a_call, 1)) + 1))

    def synchronize(self) -> None:
        if self.is_card:
            torch.cuda.synchronize(self.device)

    def time(self, calls: Sequence[Callable[[], object]], replays: int = REPLAYS) -> float:
        """Median seconds of one call. All are captured in one graph in this order: each should read other memory."""
        if not self.is_card:
            return self.time_once(lambda: [call() for call in calls]) / len(calls)
        for call in calls[:2]:  # compiles, and fills the allocator's pools
            call()
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        self._warm(graph.replay)
        return statistics.median(self._time_event(graph.replay) for _ in range(replays)) / len(calls)

    def time_eager(self, calls: Sequence[Callable[[], object]], replays: int = 5) -> float:
        """Median seconds of one call as Python launches it: for what synchronizes within and cannot be captured."""
        for call in calls[:1]:
            call()
        seconds = [self.time_once(call) for _ in range(replays if self.is_card else 1) for call in calls]
        return statistics.median(seconds)

    def time_once(self, call: Callable[[], object]) -> float:
        """Seconds from a quiet card to a quiet card."""
        self.synchronize()
        started = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - started

    def _warm(self, call: Callable[[], None]) -> None:
        """A card that was idle takes some time to its full clock."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < WARM_SECONDS:
            call()
            self.synchronize()

    def _time_event(self, call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def measure_bandwidth(self) -> float:
        """Bytes/s of a large copy by a kernel, read and written together."""
        num_bytes = 2**32 if self.is_card else 2**22
        source = torch.empty(num_bytes // 8, dtype=torch.int64, device=self.device).random_()
        target = torch.empty_like(source)
        return 2 * num_bytes / self.time([lambda: torch.bitwise_not(source, out=target)])

    def measure_peak(self) -> float:
        """FLOP/s of a large bf16 product of random matrices."""
        size = 8192 if self.is_card else 128
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * size**3 / self.time([lambda: torch.mm(a, b)])
