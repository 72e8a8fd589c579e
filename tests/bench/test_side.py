"""A side answers in its turn, rests between turns, and its end is told."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.side import Side, SideEndedError

ECHO = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    if json.loads(line)["do"] == "end":
        sys.exit(3)
    print(line, end="", flush=True)
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_side_answers_rests_and_says_how_it_ended() -> None:
    side = Side([sys.executable, "-c", ECHO])
    try:
        assert side.hello == {"ready": True}
        assert side.ask("decode", depth=100) == {"do": "decode", "depth": 100}
        pid = side._process.pid
        deadline = time.monotonic() + 10
        while state_of(pid) != "T":  # stopped: nothing of it can run beside the other side
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(SideEndedError, match="status 3"):
            side.ask("end")
        with pytest.raises(SideEndedError):
            side.ask("decode")
    finally:
        side.close()
