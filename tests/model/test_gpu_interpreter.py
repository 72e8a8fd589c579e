"""The GPU's kernels and decoder without a GPU: in Triton's interpreter, which must be chosen before a kernel is
imported, so in a process of its own (conftest.py)."""

from __future__ import annotations

import pytest


@pytest.mark.timeout(900)
def test_every_kernel_agrees_with_its_definition_and_the_decoder_with_modeling(in_interpreter: tuple[int, str]) -> None:
    status, output = in_interpreter
    assert status == 0, output[-8000:]
