"""llama.cpp on the shapes of our table, measured on request: the peer's side of bench.bench_table.

Run by a Python of its own that has llama-cpp-python, gguf and numpy; nothing else of this repository is imported, and
none of these is a requirement of the program. Each GGUF holds random Q4_0 weights, so that what the model says is noise
and what it costs is real; it is written once and kept.

    PYTHON bench/peer_llama.py CONFIG.json --layers 20 --work FOLDER    answers JSON lines, as bench.table_own does
    PYTHON bench/peer_llama.py CONFIG.json --layers 20 --work FOLDER --first-token    loads, gives one token, and ends

CONFIG.json is a Hugging Face config.json of a BailingMoeV2 model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18  # Q4_0: one half-precision scale, then 32 weights of 4 bits
# Standard deviations. Tokens must choose different experts, as in a real model: so the embedding outweighs what the
# layers add, and the router's logits stay off the flat ends of the sigmoid.
EMBEDDING_SPREAD, LAYER_SPREAD, ROUTER_SPREAD = 1.0, 0.005, 0.02
NIBBLE_SPREAD = 4.32  # of 1..15 minus 8
PREFILL_BATCH = 512
SPARE_TOKENS = 64  # room behind the depth for the steps that are timed
THREADS = 2

Shape = tuple[int, ...]


# --- the file ---------------------------------------------------------------------------------------------------


def list_tensors(config: dict[str, Any], num_layers: int) -> list[tuple[str, Shape, str]]:
    """Name, shape (rows first) and kind of each tensor that llama.cpp's bailingmoe2 reads: "q4_0", "embedding" (as
    q4_0), "ones" or "f32"."""
    hidden, width, experts = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    heads, kv_heads, head = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    tensors: list[tuple[str, Shape, str]] = [
        ("token_embd.weight", (config["vocab_size"], hidden), "embedding"),
        ("output_norm.weight", (hidden,), "ones"),
        ("output.weight", (config["vocab_size"], hidden), "q4_0"),
    ]
    for layer in range(num_layers):
        parts: list[tuple[str, Shape, str]] = [
            ("attn_norm.weight", (hidden,), "ones"),
            ("attn_qkv.weight", ((heads + 2 * kv_heads) * head, hidden), "q4_0"),
            ("attn_q_norm.weight", (head,), "ones"),
            ("attn_k_norm.weight", (head,), "ones"),
            ("attn_output.weight", (hidden, heads * head), "q4_0"),
            ("ffn_norm.weight", (hidden,), "ones"),
        ]
        if layer < config["first_k_dense_replace"]:
            dense = config["intermediate_size"]
            parts += [(f"ffn_{name}.weight", (dense, hidden), "q4_0") for name in ("gate", "up")]
            parts.append(("ffn_down.weight", (hidden, dense), "q4_0"))
        else:
            parts += [("ffn_gate_inp.weight", (experts, hidden), "f32"), ("exp_probs_b.bias", (experts,), "f32")]
            for name in ("gate", "up"):
                parts.append((f"ffn_{name}_exps.weight", (experts, width, hidden), "q4_0"))
                parts.append((f"ffn_{name}_shexp.weight", (width, hidden), "q4_0"))
            parts.append(("ffn_down_exps.weight", (experts, hidden, width), "q4_0"))
            parts.append(("ffn_down_shexp.weight", (hidden, width), "q4_0"))
        tensors += [(f"blk.{layer}.{name}", shape, kind) for name, shape, kind in parts]
    return tensors


def write_gguf(config: dict[str, Any], num_layers: int, path: Path) -> None:
    """Writes the file under another name and moves it into its place when it is whole."""
    unfinished = path.with_suffix(".part")
    writer = gguf.GGUFWriter(str(unfinished), "bailingmoe2")
    _describe(writer, config, num_layers)
    tensors = list_tensors(config, num_layers)
    for name, shape, kind in tensors:
        if kind in ("q4_0", "embedding"):
            stored = (*shape[:-1], shape[-1] // BLOCK_WEIGHTS * BLOCK_BYTES)
            kind_in_file = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind_in_file)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    pools = {
        "q4_0": _random_blocks(rng, 2**21, LAYER_SPREAD),
        "embedding": _random_blocks(rng, 2**21, EMBEDDING_SPREAD),
    }
    for _, shape, kind in tensors:
        if kind in pools:
            writer.write_tensor_data(_cut(rng, pools[kind], shape))
        elif kind == "ones":
            writer.write_tensor_data(np.ones(shape, dtype=np.float32))
        else:
            writer.write_tensor_data((rng.standard_normal(shape) * ROUTER_SPREAD).astype(np.float32))
    writer.close()
    unfinished.rename(path)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], num_layers: int) -> None:
    writer.add_name("random")
    writer.add_block_count(num_layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(int(config["head_dim"] * config["partial_rotary_factor"]))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["num_shared_experts"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _random_blocks(rng: np.random.Generator, num_blocks: int, spread: float) -> np.ndarray:
    # Without the nibble 0 weights are 0 at the mean; a shift would grow from layer to layer and decide the routing.
    blocks = rng.integers(1, 16, (num_blocks, BLOCK_BYTES), dtype=np.uint8)
    blocks += rng.integers(1, 16, blocks.shape, dtype=np.uint8) << 4
    blocks[:, :2] = np.frombuffer(np.float16(spread / NIBBLE_SPREAD).tobytes(), dtype=np.uint8)
    return blocks


def _cut(rng: np.random.Generator, pool: np.ndarray, shape: Shape) -> np.ndarray:
    """Blocks of a matrix, cut from the pool in runs that begin at random places."""
    whole, rest = divmod(int(np.prod(shape)) // BLOCK_WEIGHTS, len(pool) // 2)
    starts = rng.integers(0, len(pool) // 2, whole + 1)
    runs = [pool[start : start + len(pool) // 2] for start in starts[:whole]]
    return np.concatenate([*runs, pool[starts[-1] : starts[-1] + rest]]).reshape(*shape[:-1], -1)


# --- measuring --------------------------------------------------------------------------------------------------


class Peer:
    """A model of so many layers in llama.cpp. A context is kept for each depth and number of streams, so that a long
    prompt is read once and not for each round."""

    def __init__(self, path: Path, repack: bool) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = repack
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise SystemExit(f"llama.cpp could not load {path}; remove it, so that it is written anew.")
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}
        self._draw = random.Random(0)

    def decode(self, depth: int, streams: int, steps: int) -> list[float]:
        """Seconds of steps that give each of the streams one token more."""
        context = self._context(depth, streams)
        seconds = []
        for step in range(min(steps, SPARE_TOKENS)):
            started = time.perf_counter()
            self._run(context, [(depth + step, stream, True) for stream in range(streams)])
            seconds.append(time.perf_counter() - started)
        memory = llama_cpp.llama_get_memory(context)
        for stream in range(streams):
            llama_cpp.llama_memory_seq_rm(memory, stream, depth, -1)
        return seconds

    def prefill(self, num_tokens: int, repeats: int) -> list[float]:
        """Seconds of reading a whole prompt."""
        context = self._context(0, 1, room=num_tokens)
        seconds = []
        for _ in range(repeats):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            started = time.perf_counter()
            self._run(context, [(place, 0, place == num_tokens - 1) for place in range(num_tokens)])
            seconds.append(time.perf_counter() - started)
        return seconds

    def _context(self, depth: int, streams: int, room: int = 0) -> Any:
        """A context whose streams each hold a prompt of `depth` tokens."""
        if (depth, streams) in self._contexts:
            return self._contexts[depth, streams]
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = max(room, streams * (depth + SPARE_TOKENS))
        parameters.n_batch = parameters.n_ubatch = PREFILL_BATCH
        parameters.n_threads = parameters.n_threads_batch = THREADS
        parameters.n_seq_max = streams
        parameters.kv_unified = True
        context = self._contexts[depth, streams] = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise SystemExit("llama.cpp could not make a context; is there memory left?")
        for stream in range(streams):
            for first in range(0, depth, PREFILL_BATCH):
                places = range(first, min(first + PREFILL_BATCH, depth))
                self._run(context, [(place, stream, False) for place in places[:-1]] + [(places[-1], stream, True)])
        return context

    def _run(self, context: Any, tokens: list[tuple[int, int, bool]]) -> None:
        """A pass over random tokens, each given by its place, its stream and whether its logits are wanted."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for number, (place, stream, wants_logits) in enumerate(tokens):
            batch.token[number] = self._draw.randrange(self._num_tokens)
            batch.pos[number] = place
            batch.n_seq_id[number] = 1
            batch.seq_id[number][0] = stream
            batch.logits[number] = wants_logits
        status = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_synchronize(context)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}.")


def rss_gb() -> float:
    """Resident now, the mapped file's pages included."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e9


def answer(peers: dict[int, Peer], request: dict[str, Any]) -> dict[str, Any]:
    peer = peers[request["layers"]]
    if request["do"] == "decode":
        return {"seconds": peer.decode(request["depth"], request["streams"], request["steps"])}
    return {"seconds": peer.prefill(request["tokens"], request["repeats"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the GGUF files, 9.2 GB for 20 layers")
    parser.add_argument("--no-repack", action="store_true", help="leave the weights as they lie in the file")
    parser.add_argument("--first-token", action="store_true")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    files = {layers: arguments.work / f"{arguments.config.stem}-{layers}.gguf" for layers in arguments.layers}
    for layers, path in files.items():
        if not path.exists():
            write_gguf(config, layers, path)
    quiet = llama_cpp.llama_log_callback(lambda level, message, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    peers = {layers: Peer(path, not arguments.no_repack) for layers, path in files.items()}
    if arguments.first_token:
        for peer in peers.values():
            peer.decode(0, 1, 1)
    version = {"version": llama_cpp.__version__, "rss_gb": rss_gb()}
    print(json.dumps(version | {"file_gb": sum(os.path.getsize(path) for path in files.values()) / 1e9}), flush=True)
    if arguments.first_token:
        return
    for line in sys.stdin:
        print(json.dumps(answer(peers, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
