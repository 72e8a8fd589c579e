"""A small checkpoint folder with random weights and a byte-level tokenizer of its own, like a real one's; and the tests
in Triton's interpreter, which take minutes of one core, beside all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.modeling import BailingMoeV2ForCausalLM

SPECIALS = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|role_end|>"]
TOOL_TOKENS = ["<tool_call>", "</tool_call>"]
TEMPLATE = """<role>SYSTEM</role>
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}detailed thinking off<|role_end|>
{%- for message in messages %}
{%- if message.role == 'user' %}<role>HUMAN</role>{{ message.content }}<|role_end|>
{%- elif message.role == 'assistant' %}<role>ASSISTANT</role>{{ message.content }}<|role_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"""
CORPUS = [
    "Take 5 mg of apixaban twice daily.",
    "detailed thinking off",
    "SYSTEM HUMAN ASSISTANT role",
    "头痛三天 38.5°C",
]


HERE = Path(__file__).parent
IN_INTERPRETER = [str(HERE / "gpu_ops.py"), str(HERE / "gpu_decoder.py")]
_BESIDE = pytest.StashKey[tuple["subprocess.Popen[str]", IO[str]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for the process beside the others comes last."""
    items.sort(key=_waits)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the process, at the lowest priority, so that it takes what the others leave of the cores."""
    if session.config.option.collectonly or not any(map(_waits, session.items)) or find_spec("triton") is None:
        return
    output = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # closed when the session ends
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *IN_INTERPRETER],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    session.config.stash[_BESIDE] = process, output


def pytest_sessionfinish(session: pytest.Session) -> None:
    if beside := session.config.stash.get(_BESIDE, None):
        process, output = beside
        process.kill()
        process.wait()
        output.close()


def _waits(item: pytest.Item) -> bool:
    return "in_interpreter" in getattr(item, "fixturenames", ())


@pytest.fixture
def in_interpreter(pytestconfig: pytest.Config) -> tuple[int, str]:
    """Status and output of the tests in Triton's interpreter, once they have ended. Skips only where there is no
    Triton; that they were not started is an error."""
    pytest.importorskip("triton")
    process, output = pytestconfig.stash[_BESIDE]
    status = process.wait()
    output.seek(0)
    return status, output.read()


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that fails must fail again."""
    torch.manual_seed(0)


def make_config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 512,
        "eos_token_ids": (1,),
    }
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


def make_model(seed: int = 0, **changes: object) -> BailingMoeV2ForCausalLM:
    """A tiny random model. Its weights are larger than new ones, so that its answers are not all alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BailingMoeV2ForCausalLM(make_config(initializer_range=0.2, **changes)).eval()


def make_fast_tokenizer() -> Tokenizer:
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS * 3, trainer)
    fast.add_tokens([AddedToken(token, special=False) for token in TOOL_TOKENS])
    return fast


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; do not write into it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(make_model(), folder, torch.float32)
    make_fast_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|role_end|>", "bos_token": "<|startoftext|>", "chat_template": TEMPLATE})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 4]}))
    return folder
