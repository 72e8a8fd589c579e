"""The choice of threads, on a machine whose speed the test decides; and that a text is the same with any number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.backend import Slice
from model.backend_choice import make_backend
from model.cpu_backend import CpuBackend
from model.kernels.cpu_decoder import Threads
from model.thread_choice import ThreadChoice
from tests.model.conftest import make_model

FEW, MANY = 1, 2


class Machine:
    """A clock that steps move on: seconds a step by the number of threads."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = {FEW: 1.0, MANY: 1.0}
        self.choice = ThreadChoice(FEW, MANY, lambda: self.now)

    def run(self, num_steps: int, num_tokens: int = 1) -> list[int]:
        taken = []
        for _ in range(num_steps):
            with self.choice.step(num_tokens) as count:
                self.now += self.seconds[count] * num_tokens
            taken.append(count)
        return taken


@pytest.mark.parametrize(("few_s", "many_s", "best"), [(1.0, 0.6, MANY), (1.0, 5.0, FEW), (1.0, 0.95, FEW)])
def test_the_faster_number_is_taken_and_a_tie_leaves_a_core_free(few_s: float, many_s: float, best: int) -> None:
    machine = Machine()
    machine.seconds = {FEW: few_s, MANY: many_s}
    taken = machine.run(400)
    assert set(taken[:4]) == {MANY}
    assert set(taken[4:8]) == {FEW}
    assert taken.count(best) > 370
    assert machine.choice.describe().startswith(f"{best}: ")


def test_it_changes_with_the_machine() -> None:
    machine = Machine()
    machine.seconds = {FEW: 1.0, MANY: 0.6}
    machine.run(100)
    machine.seconds = {FEW: 1.1, MANY: 9.0}  # another program begins
    machine.run(300)
    assert machine.run(50).count(FEW) > 45
    machine.seconds = {FEW: 1.0, MANY: 0.6}  # and ends
    machine.run(3000)
    assert machine.run(50).count(MANY) > 45


def test_trying_takes_a_small_part_of_the_time() -> None:
    machine = Machine()
    machine.seconds = {FEW: 1.0, MANY: 50.0}
    machine.run(20)
    started = machine.now
    taken = machine.run(40_000)
    assert taken.count(MANY) > 0
    assert taken.count(MANY) * 50.0 < 0.03 * (machine.now - started)


def test_one_step_that_was_interrupted_changes_nothing() -> None:
    machine = Machine()
    machine.seconds = {FEW: 1.0, MANY: 0.5}
    machine.run(50)
    machine.seconds[MANY] = 1000.0
    machine.run(1)
    machine.seconds[MANY] = 0.5
    assert machine.run(400).count(MANY) > 370


def test_sizes_are_judged_apart() -> None:
    machine = Machine()
    machine.seconds = {FEW: 1.0, MANY: 9.0}
    machine.run(100)
    machine.seconds = {FEW: 1.0, MANY: 0.5}
    assert machine.run(100, num_tokens=256).count(MANY) > 80


def test_a_step_that_fails_teaches_nothing() -> None:
    machine = Machine()
    machine.run(2)
    with pytest.raises(RuntimeError), machine.choice.step(1):
        raise RuntimeError
    assert machine.choice.describe() == "2; 1 not tried yet"


@pytest.mark.parametrize("make", [lambda: Threads(1), lambda: Threads(2), lambda: Threads(3)])
def test_logits_are_the_same_to_the_bit_with_any_number(make: Callable[[], Threads]) -> None:
    torch.manual_seed(0)
    model = make_model()
    reference = CpuBackend(model, Threads(2))
    other = CpuBackend(model, make(), Threads(1))
    blocks = list(range(4))
    prompt = Slice([5, 9, 2, 7, 30, 12, 8], 0, blocks, 7)
    assert torch.equal(reference.forward([prompt]), other.forward([prompt]))
    for position in range(7, 30):  # long enough for both numbers to be tried
        step = Slice([position], position, blocks, 1)
        assert torch.equal(reference.forward([step]), other.forward([step]))
    assert other.thread_choice is not None
    assert "not tried" not in other.thread_choice.describe()


def test_a_number_that_is_set_is_kept() -> None:
    backend = make_backend(make_model(), 2)
    assert isinstance(backend, CpuBackend)
    assert backend.thread_choice is None
    assert backend.name.endswith("2 threads")
