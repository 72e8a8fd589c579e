"""SIGKILL at random moments: nothing acknowledged is lost, and the next start repairs itself.

The real program runs in a process of its own; only what the model says is scripted. bench/soak_kill.py does the same
twenty times with the embedded model.
"""

from __future__ import annotations

import random
from pathlib import Path

from bench.soak_kill import Soak


def test_kills_lose_nothing_acknowledged_and_the_next_start_repairs_itself(tmp_path: Path) -> None:
    soak = Soak(tmp_path, model="fake")
    soak.kill_once("ingest", random.uniform(0, 2))
    soak.kill_once("answer", random.uniform(0, 1))
    # Two things that were never there show that the check would notice a loss; it must find these and no other.
    soak.events += [{"event": "finished", "turn": "t", "digest": "0"}, {"event": "stored", "document": "d"}]
    soak.check()
    assert soak.problems == ["finished turn t was lost or changed", "stored document d was lost"]
    assert soak.summary()["starts_checked"] == 3
