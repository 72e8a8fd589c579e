"""The seam between a step and CUDA graphs: on a card a step is captured once and replayed, elsewhere it simply runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UPS = 2  # runs before a capture: kernels are compiled and chosen, libraries set up


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does the same as `run` each time it is called, reading and writing the same memory. On a card `run` is
    called here some times first, with what its inputs hold at this moment."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
