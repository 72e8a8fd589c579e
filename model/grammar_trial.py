"""Builds a grammar in a process of its own and writes a few texts by it, so that a hostile one harms nobody.

A program, not a module to import: model.grammar starts it before it builds the same grammar itself. The library's own
limits do not hold: a schema of 94 KB that nests 1,000 objects overflows the stack and takes the process along, and
four factors in `multipleOf` compute for minutes. Standard input: {"grammar": …, "limits": {…}, "seconds": …,
"megabytes": …}; standard output: what is wrong with it, or nothing. A process that dies says enough by that.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import threading
from collections.abc import Sequence
from typing import Any

STACK_BYTES = 2 * 2**20  # a quarter of what a thread of the program has: what fits here fits there
NUM_WALKS = 3
NUM_STEPS = 48
END_ID = 256


class _Bytes:
    """The 256 bytes as a vocabulary: every grammar can be written in it, and it costs nothing to set up."""

    eos_token_id = END_ID
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (END_ID,)
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> Sequence[int]:
        return list(text.encode() if isinstance(text, str) else text)


def try_out(grammar: str, limits: dict[str, Any]) -> str:
    """What is wrong with the grammar, "" if nothing was found."""
    import llguidance

    vocabulary: Any = _Bytes()
    tokenizer = llguidance.LLTokenizer(vocabulary, n_vocab=END_ID + 1, slices=[])
    parser_limits = llguidance.LLParserLimits(**limits)
    for seed in range(NUM_WALKS):
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits)
        chance = random.Random(seed)
        for _ in range(NUM_STEPS):
            bits = b"" if matcher.is_error() else matcher.compute_bitmask()
            if matcher.is_error():
                return matcher.get_error()
            allowed = [byte for byte in range(256) if bits[byte // 8] >> (byte % 8) & 1]
            if not allowed:
                break
            matcher.consume_token(chance.choice(allowed))
    return ""


def _main() -> None:
    task = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (task["megabytes"] * 2**20,) * 2)
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=lambda: sys.stdout.write(try_out(task["grammar"], task["limits"])))
    worker.start()
    worker.join()


if __name__ == "__main__":
    _main()
