"""Makes the pools of a run ahead of time in other processes, so that a fast device does not wait for its examples."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import torch

Work = TypeVar("Work")
_make: Callable[[int], Sequence[object]] | None = None  # in a worker: what makes a pool


def prefetch(make: Callable[[int], Sequence[Work]], pools: range, num_workers: int) -> Iterator[Sequence[Work]]:
    """make(pool) of each pool in order, by num_workers processes; by this one if there are none. What is made must
    depend on the pool alone: workers are copies of this process at the moment of the first call."""
    if not num_workers:
        yield from map(make, pools)
        return
    context = multiprocessing.get_context("fork")  # what makes a pool is large and cannot be sent
    with ProcessPoolExecutor(num_workers, context, _remember, (make,)) as executor:
        waiting: deque[Future[bytes]] = deque()
        for pool in pools:
            waiting.append(executor.submit(_run, pool))
            if len(waiting) > num_workers:
                yield pickle.loads(waiting.popleft().result())
        while waiting:
            yield pickle.loads(waiting.popleft().result())


def _remember(make: Callable[[int], Sequence[object]]) -> None:
    global _make
    _make = make
    # A child that inherits torch's threads waits for ever in the first operation that it would share among them.
    torch.set_num_threads(1)


def _run(pool: int) -> bytes:
    """Pickled here: torch would send every tensor as an open file of its own."""
    assert _make is not None
    return pickle.dumps(_make(pool), pickle.HIGHEST_PROTOCOL)
