"""A reading process: one request and a file on standard input, frames with what was read on standard output.

    python -m retrieval.reading.worker MEMORY_MB

Started by retrieval.reading.process, which says what becomes of a process that is killed, hangs or dies. What it can be
asked for stands in retrieval.reading.jobs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from retrieval.reading.limits import end_with_parent, limit_this_process


def main() -> None:
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints must not stand between the frames
    limit_this_process(int(sys.argv[1]))
    end_with_parent()
    # Only now: imports are what a spare process has done before it is needed.
    from retrieval.errors import DocumentError
    from retrieval.reading import wire
    from retrieval.reading.jobs import JOBS

    def send(message: dict[str, Any], payload: bytes = b"") -> None:
        frames.write(wire.pack(message, payload))
        frames.flush()

    request = wire.unpack(sys.stdin.buffer.read)
    if request is None:
        return
    message, data = request
    job: Callable[[dict[str, Any], bytes], Iterator[wire.Frame]] = JOBS[message["job"]]
    try:
        for answer, payload in job(message, data):
            send(answer, payload)
    except DocumentError as error:
        send({"event": "refused", "message": str(error)})
    except (MemoryError, RecursionError) as error:
        send({"event": "out of memory" if isinstance(error, MemoryError) else "failed", "type": type(error).__name__})
    except Exception as error:  # noqa: BLE001 - the edge to foreign parsers: any bytes come in, only ours goes out
        send({"event": "failed", "type": type(error).__name__})
    else:
        send({"event": "done"})


if __name__ == "__main__":
    main()
