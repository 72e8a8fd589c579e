"""The clinical regression report: what a lower precision changed, measured on the probe set and held against the gate.

The reference runs wholly before the candidate is loaded, so that only one of them is ever in memory. Both compute in
f32 if the model is small, else in bf16. Knows nothing of how a report is drawn: see report_page.py.
"""

from __future__ import annotations

import gc
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from app import prompt
from app.evaluation.changes import DRUG, KINDS, NEGATION, NUMBER, VERDICT, changed_kinds, is_changed, verdict_of
from app.evaluation.gate import judge, load_gate
from app.evaluation.probes import CATEGORIES, LANGUAGES, Probe, load_held_text, load_probes, probes_version
from app.evaluation.report import FORMAT
from contracts import Message, ModelInfo, Passage, ProgressCallback, SamplingParams, TextChunk
from model.chat_template import ChatTemplate
from model.checkpoint import default_dtype, list_shards, load_hashed_model
from model.compare import ModelComparison, TokenSequence, Trace, compare_to, record_trace, shape_of
from model.config import ModelConfig
from model.engine import Engine
from model.generator import LocalGenerator, describe_model
from model.modeling import BailingMoeV2ForCausalLM
from model.safetensors_file import SafetensorsFile
from model.sampler import SamplerError
from model.tokenizer import Tokenizer
from model.torch_backend import TorchBackend
from safety.checker import RuleSafetyChecker

ANSWER = SamplingParams(temperature=0.0, max_tokens=64)  # greedy: a change is the weights', not chance's
MB = 1_000_000  # bytes
HELD_WINDOW = 512  # tokens of held text that are read as one
MAX_HELD_WINDOWS = 16  # of each language
KL_BINS = np.linspace(-7, 1.5, 35)  # log10 of nats
CLINICAL_KINDS = (NUMBER, DRUG, NEGATION, VERDICT)


@dataclass(frozen=True, slots=True)
class _Material:
    """What both checkpoints read."""

    probes: tuple[Probe, ...]
    num_all_probes: int
    held_text: dict[str, str]

    @classmethod
    def load(cls, limit: int | None) -> _Material:
        probes = load_probes()
        number = min(limit or len(probes), len(probes))
        # At equal distances, so that every category and language keeps its share.
        chosen = tuple(probes[index * len(probes) // number] for index in range(number))
        return cls(chosen, len(probes), load_held_text())

    @property
    def max_windows(self) -> int:
        """Windows of held text of each language: as many a probe as the whole set has."""
        return max(1, MAX_HELD_WINDOWS * len(self.probes) // self.num_all_probes)


@dataclass(slots=True)
class _Checkpoint:
    """One loaded checkpoint and how text becomes its token ids. Both sides run on the reference kernels and compute in
    the same precision, whatever their weights are stored in, so that what differs is the weights' doing."""

    model: BailingMoeV2ForCausalLM
    tokenizer: Tokenizer
    template: ChatTemplate
    generator: LocalGenerator

    @classmethod
    def load(cls, folder: Path, role: str, on_progress: ProgressCallback) -> _Checkpoint:
        tokenizer = Tokenizer.load(folder)
        template = ChatTemplate.load(folder, tokenizer)
        model, sha256 = load_hashed_model(
            folder,
            default_dtype(folder),
            on_progress=lambda load: on_progress(
                f"{role}, {load.step} weights: MB", load.bytes_done // MB, load.bytes_total // MB
            ),
        )
        info = describe_model(folder, model, tokenizer, sha256)
        generator = LocalGenerator(Engine(TorchBackend(model), tokenizer.stop_ids), tokenizer, template, info)
        return cls(model, tokenizer, template, generator)


def compare_checkpoints(
    reference: Path, candidate: Path, limit: int | None = None, on_progress: ProgressCallback = lambda *_: None
) -> dict[str, Any]:
    """The report of a candidate's folder against a reference's, as plain JSON data; see docs/precision.md.

    limit: at most that many probes, spread evenly, and as small a share of the held text. on_progress gets (step with
    its unit, done, of all). Raises CheckpointError for an unusable folder, ValueError if the two are not the same model
    or limit is below 1, OSError if the disk for temporary files is too small.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}; it must be at least 1.")
    started = time.perf_counter()
    _check_folders(reference, candidate)
    material, gate, checker = _Material.load(limit), load_gate(), RuleSafetyChecker()
    with tempfile.TemporaryDirectory(prefix="bedside-precision-") as scratch:
        trace, expected, first = _run_reference(reference, material, Path(scratch), on_progress)
        gc.collect()
        comparison, answers, second = _run_candidate(candidate, material, trace, on_progress)
    changes = _find_changes(material.probes, expected, answers, checker)
    report = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "reference": _describe(first),
        "candidate": _describe(second),
        "probes": _describe_probes(material),
        "rules_version": checker.version,
        **_describe_comparison(comparison),
        "answers": _count_changes(material.probes, changes),
        "changes": changes,
    }
    report["figures"] = _figures(report)
    report["gate"] = judge(gate, report["figures"], report["layers"])
    report["seconds"] = round(time.perf_counter() - started, 1)
    return report


def _check_folders(reference: Path, candidate: Path) -> None:
    """Refuses a folder that is plainly broken, or not of the same model, before hours of work on the other."""
    for folder in (reference, candidate):
        Tokenizer.load(folder)
        for name in list_shards(folder):
            with SafetensorsFile(folder / name):
                pass
    if shape_of(ModelConfig.from_hf(reference)) != shape_of(ModelConfig.from_hf(candidate)):
        raise ValueError(
            f"{reference.name} and {candidate.name} are different models: layers, experts or vocabulary of their "
            "config.json differ."
        )


# --- running ----------------------------------------------------------------------------------------------------


def _run_reference(
    folder: Path, material: _Material, scratch: Path, on_progress: ProgressCallback
) -> tuple[Trace, list[str], ModelInfo]:
    checkpoint = _Checkpoint.load(folder, "reference", on_progress)
    sequences = _make_sequences(checkpoint, material)
    trace = record_trace(
        checkpoint.model, sequences, scratch, lambda done, total: on_progress("reference, reading: item", done, total)
    )
    answers = _answer(checkpoint, material.probes, "reference, answering: item", on_progress)
    return trace, answers, checkpoint.generator.info


def _run_candidate(
    folder: Path, material: _Material, trace: Trace, on_progress: ProgressCallback
) -> tuple[ModelComparison, list[str], ModelInfo]:
    checkpoint = _Checkpoint.load(folder, "candidate", on_progress)
    if tuple(_make_sequences(checkpoint, material)) != trace.sequences:
        raise ValueError(
            "Reference and candidate read the same text as different tokens: copy tokenizer.json, "
            "tokenizer_config.json and the chat template of the one into the folder of the other."
        )
    comparison = compare_to(
        trace, checkpoint.model, lambda done, total: on_progress("candidate, reading: item", done, total)
    )
    answers = _answer(checkpoint, material.probes, "candidate, answering: item", on_progress)
    return comparison, answers, checkpoint.generator.info


def _make_sequences(checkpoint: _Checkpoint, material: _Material) -> list[TokenSequence]:
    """Each probe's prompt with its written answer, of which the answer is scored; then windows of the held text."""
    sequences = []
    for probe in material.probes:
        prompt_ids = checkpoint.template.encode(_render(probe))
        answer_ids = checkpoint.tokenizer.encode(probe.answer)
        sequences.append(TokenSequence((*prompt_ids, *answer_ids), scored_from=len(prompt_ids) - 1))
    for language, text in material.held_text.items():
        ids = checkpoint.tokenizer.encode(text)
        starts = range(0, len(ids) - 1, HELD_WINDOW)[: material.max_windows]
        windows = (ids[start : start + HELD_WINDOW] for start in starts)
        sequences += [TokenSequence(tuple(window), group=language) for window in windows if len(window) > 1]
    return sequences


def _render(probe: Probe) -> list[Message]:
    passage = Passage(probe.id, probe.id, "record.txt", 1, 0, len(probe.passage), probe.passage)
    return prompt.render(probe.question, [passage])


def _answer(checkpoint: _Checkpoint, probes: Sequence[Probe], step: str, on_progress: ProgressCallback) -> list[str]:
    answers = []
    for number, probe in enumerate(probes, 1):
        try:
            events = checkpoint.generator.stream(_render(probe), ANSWER)
            answers.append("".join(event.text for event in events if isinstance(event, TextChunk)).strip())
        except SamplerError:
            answers.append("")  # weights that give no numbers give no answer; the figures fail the gate
        on_progress(step, number, len(probes))
    return answers


# --- answers ----------------------------------------------------------------------------------------------------


def _find_changes(
    probes: Sequence[Probe], expected: Sequence[str], answers: Sequence[str], checker: RuleSafetyChecker
) -> list[dict[str, Any]]:
    """The answers that changed, with what changed in each."""
    changes = []
    for probe, reference, candidate in zip(probes, expected, answers, strict=True):
        if not is_changed(reference, candidate):
            continue
        verdicts = [verdict_of(answer, probe.passage, checker) for answer in (reference, candidate)]
        kinds = [*changed_kinds(reference, candidate), *([VERDICT] if verdicts[0] is not verdicts[1] else [])]
        change = asdict(probe) | {"expected": probe.answer, "reference": reference, "candidate": candidate}
        del change["answer"]
        change |= {"kinds": kinds, "reference_verdict": verdicts[0].value, "candidate_verdict": verdicts[1].value}
        changes.append(change)
    return changes


def _count_changes(probes: Sequence[Probe], changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kinds = Counter(kind for change in changes for kind in change["kinds"])
    clinical = [change for change in changes if set(CLINICAL_KINDS) & set(change["kinds"])]
    items = Counter(probe.category for probe in probes)
    changed, serious = (Counter(change["category"] for change in some) for some in (changes, clinical))
    return {
        "compared": len(probes),
        "changed": len(changes),
        "clinical": len(clinical),
        **{kind: kinds[kind] for kind in KINDS},
        "by_category": {
            category: {"items": items[category], "changed": changed[category], "clinical": serious[category]}
            for category in CATEGORIES
            if items[category]
        },
    }


# --- the report's parts -----------------------------------------------------------------------------------------


def _describe(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "precision": info.precision,
        "weights_sha256": info.weights_sha256,
        "parameters": info.num_parameters,
        "kernels": info.kernels,
    }


def _describe_probes(material: _Material) -> dict[str, Any]:
    languages = Counter(probe.language for probe in material.probes)
    return {
        "version": probes_version(),
        "items": len(material.probes),
        "of": material.num_all_probes,
        "languages": {language: languages[language] for language in LANGUAGES},
    }


def _describe_comparison(comparison: ModelComparison) -> dict[str, Any]:
    kl = comparison.kl.astype(float)
    counts, _ = np.histogram(np.log10(np.clip(kl, 10 ** KL_BINS[0], 10 ** KL_BINS[-1])), KL_BINS)
    return {
        "tokens": {"scored": len(kl), "layer_by_layer": comparison.num_traced_tokens},
        "kl": {
            "mean": _number(kl.mean()),
            "median": _number(np.median(kl)),
            "p99": _number(np.percentile(kl, 99)),
            "max": _number(kl.max()),
            "by_text": {group or "answers": _number(mean) for group, mean in comparison.kl_means.items()},
            "log10_edges": [round(float(edge), 3) for edge in KL_BINS],
            "counts": counts.tolist(),
        },
        "top1_agreement": _number(comparison.top1_agreement),
        "perplexity": {
            language: {"reference": _number(first), "candidate": _number(second)}
            for language, (first, second) in comparison.perplexity.items()
        },
        "embedding_error": _number(comparison.embedding_error),
        "head_kl": _number(comparison.head_kl),
        "layers": [
            {key: _number(value) if isinstance(value, float) else value for key, value in asdict(layer).items()}
            | {"is_moe": layer.worst_expert is not None}
            for layer in comparison.layers
        ],
    }


def _figures(report: dict[str, Any]) -> dict[str, float | None]:
    """The figure of each measure of the gate; None where it is not a number."""
    routed = [layer for layer in report["layers"] if layer["is_moe"]]
    pairs = report["perplexity"].values()
    ratios = [None if None in pair.values() else pair["candidate"] / pair["reference"] for pair in pairs]
    shares = {f"changed_{kind}": report["answers"][kind] / report["answers"]["compared"] for kind in CLINICAL_KINDS}
    return {
        "kl_mean": report["kl"]["mean"],
        "kl_p99": report["kl"]["p99"],
        "top1_agreement": report["top1_agreement"],
        "perplexity_ratio": _worst(ratios),
        "experts_overlap": _worst((layer["experts_overlap"] for layer in routed), is_least=True),
        "router_overlap": _worst((layer["router_overlap"] for layer in routed), is_least=True),
        "expert_error": _worst(layer["worst_expert_error"] for layer in routed),
        "layer_error": _worst(layer["error"] for layer in report["layers"]),
        "embedding_error": report["embedding_error"],
        "head_kl": report["head_kl"],
        **shares,
    }


def _worst(values: Iterable[float | None], is_least: bool = False) -> float | None:
    """The largest, or least; None if any could not be measured."""
    found = list(values)
    if any(value is None for value in found):
        return None
    numbers = [value for value in found if value is not None]
    return min(numbers) if is_least else max(numbers)


def _number(value: float | np.floating[Any]) -> float | None:
    """JSON has no NaN or infinity: what is no number is None, and fails the gate."""
    return float(f"{float(value):.6g}") if np.isfinite(value) else None
