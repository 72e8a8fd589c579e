"""Settings: read once, from the environment and one optional TOML file; everything else takes them as an argument.

Each field is set by BEDSIDE_<FIELD> in the environment, or by `<field> = …` in the file that BEDSIDE_CONFIG names; the
environment wins. An unknown or malformed key is an error that names it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from app.errors import SettingsError
from contracts import SamplingParams

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED_CHECKPOINT = ROOT / "model" / "embedded"

# auto: as stored, but f32 for plain weights of less than 1e9 parameters. nf4 and int8 quantize plain weights while they
# are read; weights that are stored quantized stay as they are, and asking for another quantization is an error.
PRECISIONS = ("auto", "f32", "bf16", "nf4", "int8")

# auto: the C++ kernels that suit the processor best, or torch where there is no compiler.
KERNELS = ("auto", "reference", "avx512", "avx2")

# auto: a CUDA card where there is one, unless a packed folder or C++ kernels are asked for.
DEVICES = ("auto", "cpu", "cuda")

# What keys and values are stored as. auto: f32 for a model computed in f32, else bf16.
KV_CACHES = ("auto", "f32", "bf16", "int8")

# How a packed folder is held (model.packed.load). auto: mapped, or with its experts on the disk if it is larger than
# the memory that is free.
WEIGHTS = ("auto", "map", "copy", "disk")

# Threads that wait by spinning starve the page: beside another job, 2 spinning threads took 1.7-8.4 s to the first
# token, passive ones 0.4 s. Read by OpenMP when torch is first imported.
_THREAD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}

# Nothing leaves the building: no model hub, no telemetry, no tracing.
OFFLINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Settings:
    data_dir: Path = ROOT / "var"  # the database, its key, the vectors
    database_url: str = ""  # SQLAlchemy URL; empty: SQLite in data_dir
    checkpoint: Path = EMBEDDED_CHECKPOINT  # folder of a Hugging Face checkpoint
    precision: str = "auto"  # one of PRECISIONS
    device: str = "auto"  # one of DEVICES
    kernels: str = "auto"  # one of KERNELS
    kv_cache: str = "auto"  # one of KV_CACHES
    draft_head: str = ""  # folder of an EAGLE-3 head made for the checkpoint; empty: its MTP layer, if it has one
    card_drafts: bool = True  # drafts on a graphics card too; docs/gpu.md says where texts were seen to stay
    weights: str = "auto"  # one of WEIGHTS
    expert_cache_gb: float = 0  # memory for experts that are read from the disk; 0: what is free
    server_url: str = ""  # an OpenAI-compatible server that answers in the checkpoint's place; empty: this process
    server_model: str = ""  # its name there; empty: the only one the server has
    server_context: int = 0  # tokens of its context; 0: what the server says
    server_key: str = field(default="", repr=False)  # bearer token: sent to server_url, asked for by `bedside serve`
    demo: bool | None = None  # three synthetic patients; unset: only with the embedded model
    host: str = "127.0.0.1"
    port: int = 8501
    prepared_mb: int = 4096  # of disk for prepared records, all patients together; 0: none are prepared
    embedder: str = (
        ""  # folder, or name in the local Hugging Face cache, of another embedder; empty: the one that ships
    )
    chroma_url: str = ""  # of a `chroma run` server for the vectors; empty: in data_dir
    threads: int = 0  # compute threads of the model and the embedder; 0: one per core, or fewer where that is faster
    max_upload_mb: int = 50
    readers: int = 2  # documents that are read side by side
    reader_mb: int = 2048  # memory of each process that reads a document; one that needs more is ended
    retention_days: int = 0  # after which a document is removed; 0: documents are kept until somebody deletes them
    max_answer_tokens: int = 512
    max_answer_seconds: int = 0  # how long an answer may take, waiting included; 0: as long as it takes
    temperature: float = 0.0  # 0 is greedy: the same question gives the same answer
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    constrain_citations: bool = False  # an answer's [n] can name only passages that were given
    user_header: str = ""  # request header in which the hospital's proxy names the user; empty: one local user
    role_header: str = ""  # and the user's roles, with commas between; empty: the local user is a clinician
    reveal_roles: str = "clinician"  # who may look at what was withheld, with a reason; empty: nobody
    review_roles: str = "clinician"  # who may switch safety rules off and on, with a reason; empty: nobody

    def __post_init__(self) -> None:
        limits: Mapping[str, tuple[float, float]] = {
            "port": (1, 65535),
            "threads": (0, 1024),
            "expert_cache_gb": (0, 10_000),
            "server_context": (0, 10_000_000),
            "prepared_mb": (0, 10_000_000),
            "max_upload_mb": (1, 2000),
            "readers": (1, 16),
            "reader_mb": (1024, 65_536),
            "retention_days": (0, 36_500),
            "max_answer_tokens": (16, 16384),
            "max_answer_seconds": (0, 86_400),
            "temperature": (0, 2),
            "top_p": (0.01, 1),
            "top_k": (0, 1_000_000),
            "repetition_penalty": (0.5, 2),
        }
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not low <= value <= high:
                raise SettingsError(f"{key} is {value}; it must lie between {low:g} and {high:g}.")
        if self.precision not in PRECISIONS:
            raise SettingsError(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}.")
        if self.weights not in WEIGHTS:
            raise SettingsError(f"weights is {self.weights!r}; use one of {', '.join(WEIGHTS)}.")
        if self.device not in DEVICES:
            raise SettingsError(f"device is {self.device!r}; use one of {', '.join(DEVICES)}.")
        if self.kernels not in KERNELS:
            raise SettingsError(f"kernels is {self.kernels!r}; use one of {', '.join(KERNELS)}.")
        if self.kv_cache not in KV_CACHES:
            raise SettingsError(f"kv_cache is {self.kv_cache!r}; use one of {', '.join(KV_CACHES)}.")

    @property
    def uses_embedded_model(self) -> bool:
        return not self.server_url and self._names_embedded_checkpoint

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where the tokenizer of a model on a server lies; None if no checkpoint was named."""
        return None if self._names_embedded_checkpoint else self.checkpoint

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_answer_tokens,
            max_seconds=self.max_answer_seconds,
        )

    @property
    def load_options(self) -> dict[str, Any]:
        """How a checkpoint is loaded: keyword arguments of model.generator.LocalGenerator.load."""
        return {
            "dtype": None if self.precision == "auto" else self.precision,
            "threads": self.threads or None,
            "device": self.device,
            "kernels": self.kernels,
            "cache": self.kv_cache,
            "draft_head": self.draft_head or None,
            "card_drafts": self.card_drafts,
            "weights": self.weights,
            "expert_bytes": int(self.expert_cache_gb * 1e9) or None,
        }

    @property
    def _names_embedded_checkpoint(self) -> bool:
        return self.checkpoint.resolve() == EMBEDDED_CHECKPOINT.resolve()

    @property
    def is_demo(self) -> bool:
        return self.uses_embedded_model if self.demo is None else self.demo


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment and the file BEDSIDE_CONFIG names. Raises SettingsError naming key and value."""
    environment = os.environ if environment is None else environment
    given = {k.removeprefix("BEDSIDE_").lower(): v for k, v in environment.items() if k.startswith("BEDSIDE_")}
    values: dict[str, Any] = {}
    if path := given.pop("config", None):
        values |= _read_file(Path(path))
    values |= given
    types = get_type_hints(Settings)
    known = [field.name for field in fields(Settings)]
    for key in values:
        if key not in types:
            raise SettingsError(f"Unknown setting {key!r}; the settings are {', '.join(known)}.")
    return Settings(**{key: _convert(key, value, types[key]) for key, value in values.items()})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error}.") from error


def _convert(key: str, value: Any, kind: Any) -> Any:
    try:
        if kind in (Path, str, float):
            return kind(value)
        if kind is int:
            return int(str(value))
        return {"1": True, "true": True, "0": False, "false": False}[str(value).lower()]
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"Setting {key} is {value!r}, which cannot be read as {_name(kind)}.") from error


def _name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", Path: "a path"}.get(kind, "true or false")


def go_offline() -> None:
    """Switches off, for this process and its children, everything in our libraries that would call out.

    Raises SettingsError if LangSmith tracing is on: it would send every prompt to a server outside.
    """
    for key in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        if os.environ.get(key, "").lower() in ("1", "true"):
            raise SettingsError(f"{key} is on and would send prompts outside; unset it to start.")
    os.environ.update(OFFLINE_ENVIRONMENT)


def prepare_process() -> None:
    """What must stand in the environment before torch is imported: no calls outside, no spinning threads."""
    go_offline()
    for key, value in _THREAD_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
