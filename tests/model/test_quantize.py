"""Quantizing a folder: exact read-back, an independent reader, interruption, and what cannot be read or written."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.prompt import render
from contracts import Passage, SamplingParams, TextChunk
from model.checkpoint import list_shards, load_model, save_checkpoint
from model.config import CheckpointError, ModelConfig
from model.generator import EMBEDDED, LocalGenerator
from model.quantization import dequantize_fp8, dequantize_int4, pack_int4
from model.quantize import stream
from model.quantize.calibrate import Calibration, read_calibration
from model.quantize.folder import JOURNAL, OutputError
from model.quantize.gptq import quantize_gptq
from model.quantize.rtn import quantize_rtn, round_to, search_scales
from model.quantize.shards import Step
from model.quantize.source import QuantizeOptions
from model.quantize.stream import quantize_checkpoint
from tests.model.conftest import make_fast_tokenizer, make_model

ROOT = Path(__file__).resolve().parents[2]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
RTN = QuantizeOptions(group_size=32, attention=True)
FILES = 4  # three layers and the rest


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of each kind, in bf16; do not write into it."""
    folder = tmp_path_factory.mktemp("source")
    save_checkpoint(make_model(), folder, torch.bfloat16)
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    make_fast_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def rounded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounded") / "int4"
    quantize_checkpoint(source, folder, RTN)
    return folder


def read_folder(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in list_shards(folder) for name, t in load_file(folder / file).items()}


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dequantize(tensors: dict[str, Tensor], module: str, dtype: torch.dtype = torch.float32) -> Tensor:
    columns = int(tensors[f"{module}.weight_shape"][1])
    return dequantize_int4(tensors[f"{module}.weight_packed"], tensors[f"{module}.weight_scale"], columns, dtype=dtype)


def edit_weights(source: Path, target: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a one-file checkpoint with some tensors changed."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_linear_weights_are_near_and_all_else_is_the_same(source: Path, rounded: Path) -> None:
    before, after = load_file(source / "model.safetensors"), read_folder(rounded)
    quantized = {name.removesuffix("_packed") for name in after if name.endswith("weight_packed")}
    assert {name for name in before if re.search(r"(_proj|query_key_value|dense)\.weight$", name)} == quantized
    for name, weight in before.items():
        if name in quantized:
            error = (dequantize(after, name.removesuffix(".weight")) - weight.float()).norm() / weight.float().norm()
            assert error < 0.1
            assert tuple(after[f"{name}_shape"].tolist()) == tuple(weight.shape)
            assert after[f"{name}_scale"].dtype == torch.bfloat16
        else:
            assert torch.equal(after[name], weight)
            assert after[name].dtype == weight.dtype
    assert (rounded / "tokenizer_config.json").read_text(encoding="utf-8") == "{}"


def test_searched_scales_beat_the_largest_weight_as_scale() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0.0
    result = quantize_rtn(weight, 32, torch.bfloat16)
    plain_scales = (weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 7.5).bfloat16().float()
    plain = ((weight.unflatten(1, (-1, 32)) / plain_scales).round().clamp(-8, 7) * plain_scales).flatten(1).nan_to_num()
    dequantized = dequantize_int4(result.packed, result.scales, 256)
    error = float((dequantized - weight).square().sum())
    assert error < 0.9 * float((plain - weight).square().sum())
    assert result.squared_error == pytest.approx(error, rel=1e-4)
    assert not dequantized[0, :32].any()
    assert bool((result.scales > 0).all())


def test_whole_multiples_of_a_step_come_out_as_they_were() -> None:
    random_ = torch.Generator().manual_seed(0)
    whole = torch.randint(-7, 8, (200, 4, 32), generator=random_)
    whole[:50, :, 2:] = 0  # where any step would fit nearly
    steps = 2.0 ** torch.randint(-6, 6, (200, 4, 1), generator=random_)
    weight = (whole * steps).flatten(1)
    result = quantize_rtn(weight, 32, torch.bfloat16)
    assert torch.equal(dequantize_int4(result.packed, result.scales, 128), weight)
    # What was rounded once, to a step short enough for its multiples to be exact, is not rounded again.
    weight = torch.randn(200, 128, generator=random_)
    groups = weight.unflatten(1, (-1, 32))
    mantissa, exponent = torch.frexp(search_scales(groups, torch.bfloat16).float()[..., None])
    short = torch.ldexp((mantissa * 32).round() / 32, exponent)
    rounded = (round_to(groups, short) * short).flatten(1)
    result = quantize_rtn(rounded, 32, torch.bfloat16)
    assert torch.equal(dequantize_int4(result.packed, result.scales, 128), rounded)


@pytest.mark.parametrize("options", [RTN, QuantizeOptions(group_size=64, attention=False)], ids=["all", "some"])
def test_compressed_tensors_reads_the_same_weights(source: Path, tmp_path: Path, options: QuantizeOptions) -> None:
    """transformers' own quantizer, over a module tree of nothing but nn.Linear under the checkpoint's names."""
    import transformers

    from model.hf import BailingMoeConfig

    before = load_file(source / "model.safetensors")
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in before.items() if t.dim() == 2}
    linears = {n: shape for n, shape in shapes.items() if not n.endswith(("mlp.gate", "word_embeddings"))}

    class Reader(transformers.PreTrainedModel):
        config_class = BailingMoeConfig

        def __init__(self, config: BailingMoeConfig) -> None:
            super().__init__(config)
            for name, (rows, columns) in linears.items():
                parent: nn.Module = self
                *path, last = name.split(".")
                for part in path:
                    if not hasattr(parent, part):
                        parent.add_module(part, nn.Module())
                    parent = getattr(parent, part)
                parent.add_module(last, nn.Linear(columns, rows, bias=False))
            self.post_init()

    quantize_checkpoint(source, tmp_path / "int4", options)
    tensors = read_folder(tmp_path / "int4")
    model = Reader.from_pretrained(tmp_path / "int4", dtype=torch.bfloat16)
    assert {n.rpartition(".")[0] for n in model.state_dict() if n.endswith("weight_packed")} == {
        name.rpartition(".")[0] for name in tensors if name.endswith("weight_packed")
    }
    model.hf_quantizer.compressor.decompress_model(model)
    for name in linears:
        is_packed = f"{name}.weight_packed" in tensors
        ours = dequantize(tensors, name, torch.bfloat16) if is_packed else tensors[f"{name}.weight"]
        assert torch.equal(model.get_submodule(name).weight, ours)


def test_what_is_left_out_is_in_the_ignore_list(source: Path, tmp_path: Path) -> None:
    report = quantize_checkpoint(source, tmp_path / "a", QuantizeOptions(group_size=64, attention=False))
    config = ModelConfig.from_hf(tmp_path / "a")
    assert config.quantization_config is not None
    ignored = set(config.quantization_config["ignore"])
    tensors = read_folder(tmp_path / "a")
    assert "model.layers.1.mlp.experts.0.down_proj.weight" in report.undivided  # 32 columns
    assert {"lm_head", "model.layers.0.attention.dense", "model.layers.1.mlp.experts.0.down_proj"} <= ignored
    assert "model.layers.1.mlp.experts.0.gate_proj" not in ignored
    assert all(f"{module}.weight" in tensors for module in ignored)
    quantize_checkpoint(source, tmp_path / "b", QuantizeOptions(group_size=32, lm_head=True))
    assert "lm_head.weight_packed" in read_folder(tmp_path / "b")


def test_mtp_layer_keeps_its_projection_unless_asked(tmp_path: Path) -> None:
    save_checkpoint(make_model(num_nextn_predict_layers=1), tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", tmp_path / "kept", RTN)
    assert "model.layers.3.eh_proj.weight" in read_folder(tmp_path / "kept")
    assert "model.layers.3.mlp.experts.0.up_proj.weight_packed" in read_folder(tmp_path / "kept")
    quantize_checkpoint(tmp_path / "source", tmp_path / "asked", QuantizeOptions(group_size=32, mtp_projection=True))
    assert "model.layers.3.eh_proj.weight_packed" in read_folder(tmp_path / "asked")


def test_fp8_source_is_what_its_scales_say(source: Path, tmp_path: Path) -> None:
    """Ragged blocks: 48 x 40 on matrices of 32 to 128 rows."""
    block = (48, 40)
    folder = tmp_path / "fp8"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors, meant = load_file(folder / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith("_proj.weight") or ".attention.dense" in n]:
        rows, columns = tensors[name].shape
        scale = torch.rand(-(-rows // block[0]), -(-columns // block[1])) / 100 + 0.01
        tensors[name] = (tensors[name].float() * 20).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        meant[name] = dequantize_fp8(tensors[name], scale, block)
    save_file(tensors, folder / "model.safetensors")
    quantize_checkpoint(folder, tmp_path / "int4", QuantizeOptions(group_size=32, attention=False))
    after = read_folder(tmp_path / "int4")
    for name, weight in meant.items():
        if ".attention." in name:
            assert torch.equal(after[name], weight.bfloat16())
        else:
            expected = quantize_rtn(weight, 32, torch.bfloat16)
            assert torch.equal(after[f"{name}_packed"], expected.packed)
    assert not [name for name in after if name.endswith("scale_inv")]


# --- interruption ------------------------------------------------------------------------------------------------


def start(source: Path, target: Path, *options: str, **kwargs: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "quantize",
        str(source),
        str(target),
        "--group-size",
        "32",
        "--attention",
    ]
    return subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, **kwargs)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    message = process.communicate()[1]
    return process.returncode, message


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.001)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_killed_again_and_again_it_ends_as_if_never_killed(source: Path, tmp_path: Path, method: str) -> None:
    options = ("--method", method, "--calibration-tokens", "1024")
    assert finish(start(source, tmp_path / "whole", *options))[0] == 0
    target = tmp_path / "killed"
    random.seed(1)
    for file in (1, 3):
        process = start(source, target, *options)
        partial = target / f"model-{file:05d}-of-{FILES:05d}.safetensors.partial"
        done = target / partial.stem
        wait_for(lambda at=partial, to=done: at.exists() or to.exists(), process)
        time.sleep(random.random() / 50)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (target / "config.json").exists():
            with pytest.raises(CheckpointError):
                load_model(target)
    assert finish(start(source, target, *options))[0] == 0
    assert read_bytes(target) == read_bytes(tmp_path / "whole")


def test_going_on_keeps_the_finished_files_and_checks_them(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int4"
    quantize_checkpoint(source, target, RTN)
    whole = read_bytes(target)
    # as a crash after the second file would have left it
    journal = json.loads((target / JOURNAL).read_text(encoding="utf-8"))
    first, second, *others = sorted(journal["shards"])
    for name in others:
        del journal["shards"][name]
        (target / name).unlink()
    (target / "config.json").unlink()
    (target / JOURNAL).write_text(json.dumps(journal), encoding="utf-8")
    times = {name: (target / name).stat().st_mtime_ns for name in (first, second)}
    quantize_checkpoint(source, target, RTN)
    assert {name: (target / name).stat().st_mtime_ns for name in times} == times
    assert read_bytes(target) == whole
    flipped = bytearray(whole[first])
    flipped[-1] ^= 1
    (target / first).write_bytes(flipped)
    with pytest.raises(CheckpointError, match=f"{first} is not as it was written"):
        quantize_checkpoint(source, target, RTN)


def test_other_options_need_overwrite(source: Path, rounded: Path, tmp_path: Path) -> None:
    target = tmp_path / "int4"
    quantize_checkpoint(source, target, QuantizeOptions(group_size=64))
    with pytest.raises(ValueError, match="use --overwrite to start over"):
        quantize_checkpoint(source, target, RTN)
    quantize_checkpoint(source, target, RTN, overwrite=True)
    assert read_bytes(target) == read_bytes(rounded)


def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(source: Path, rounded: Path, tmp_path: Path) -> None:
    target = tmp_path / "int4"
    largest = max((rounded / name).stat().st_size for name in list_shards(rounded))
    process = start(
        source,
        target,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, resource.RLIM_INFINITY)),
    )
    status, errors = finish(process)
    message = errors.splitlines()[-1]
    assert status == 1
    assert message.startswith("bedside: ")
    assert "its disk is full" in message
    assert not (target / "config.json").exists()
    assert not list(target.glob("*.partial"))
    quantize_checkpoint(source, target, RTN)
    assert read_bytes(target) == read_bytes(rounded)


def test_a_disk_too_small_is_refused_before_any_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="GB free; free some"):
        quantize_checkpoint(source, tmp_path / "int4", RTN)
    assert not list((tmp_path / "int4").glob("*.safetensors*"))


def test_interrupt_from_the_keyboard(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int4"
    process = start(source, target, "--method", "gptq")  # long enough to be met by the signal
    wait_for((target / JOURNAL).exists, process)
    process.send_signal(signal.SIGINT)
    status, message = finish(process)
    assert status == 130
    assert "the same command goes on" in message
    assert "Traceback" not in message
    assert not list(target.glob("*.partial"))


# --- GPTQ --------------------------------------------------------------------------------------------------------


def make_ids(num_sequences: int, length: int, vocab_size: int = 380) -> Tensor:
    return torch.randint(vocab_size, (num_sequences, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, 256])
def test_gptq_has_a_smaller_output_error_than_rounding(group_size: int, act_order: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=generator) * torch.logspace(0, -2, 256)[:, None]
    inputs = torch.randn(2000, 256, generator=generator) @ mixing
    unseen = torch.randn(500, 256, generator=generator) @ mixing
    weight = torch.randn(96, 256, generator=generator)
    rounded = quantize_rtn(weight, group_size, torch.bfloat16)
    q, scales = quantize_gptq(weight, inputs.T @ inputs, group_size, torch.bfloat16, act_order=act_order)
    ours = dequantize_int4(pack_int4(q.to(torch.int8)), scales, 256)
    plain = dequantize_int4(rounded.packed, rounded.scales, 256)
    assert (unseen @ (ours - weight).T).norm() < 0.6 * (unseen @ (plain - weight).T).norm()


@pytest.mark.parametrize("num_mtp", [0, 1])
def test_calibration_sees_what_the_quantized_model_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_mtp: int
) -> None:
    """The residual stream behind the last layer, of the folder as it is loaded again."""
    made = []
    monkeypatch.setattr(stream, "Calibration", lambda *args: made.append(Calibration(*args)) or made[0])
    model = make_model(num_nextn_predict_layers=num_mtp)
    save_checkpoint(model, tmp_path / "source", torch.float32)
    ids = make_ids(6, 40)
    options = QuantizeOptions("gptq", 32, attention=True, mtp_projection=True)
    report = quantize_checkpoint(tmp_path / "source", tmp_path / "int4", options, calibration_ids=ids)
    assert "MTP projection" in report.errors or not num_mtp
    loaded = load_model(tmp_path / "int4", torch.float32)
    with torch.no_grad():
        output = loaded(ids, output_hidden=True, output_mtp=True)
        if num_mtp:
            torch.testing.assert_close(loaded.model.layers[3].final_layernorm(made[0].hidden), output.mtp_hidden)
        else:
            torch.testing.assert_close(made[0].hidden, output.hidden[-1])


def test_experts_that_no_token_reached_are_rounded_and_named(source: Path, rounded: Path, tmp_path: Path) -> None:
    def shun(tensors: dict[str, Tensor]) -> None:  # and with it expert 4, the other one of its group
        tensors["model.layers.2.mlp.gate.expert_bias"][5] = -100.0

    shunning = edit_weights(source, tmp_path / "shunning", shun)
    ids = make_ids(16, 64)
    report = quantize_checkpoint(
        shunning, tmp_path / "int4", QuantizeOptions("gptq", group_size=32), calibration_ids=ids
    )
    assert report.fallbacks == {2: (4, 5)}
    plain, ours = read_folder(rounded), read_folder(tmp_path / "int4")
    for kind in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.2.mlp.experts.{{}}.{kind}.weight_packed"
        assert torch.equal(plain[name.format(5)], ours[name.format(5)])
        assert not torch.equal(plain[name.format(3)], ours[name.format(3)])


def test_calibration_goes_on_from_the_saved_states_or_says_that_they_are_damaged(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, ids = QuantizeOptions("gptq", group_size=32), make_ids(8, 64)
    quantize_checkpoint(source, tmp_path / "whole", options, calibration_ids=ids)
    target = tmp_path / "int4"

    def stop(step: Step) -> None:
        if step.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, target, options, calibration_ids=ids, show=stop)
    shutil.copytree(target, tmp_path / "damaged")
    (states,) = (tmp_path / "damaged").glob(".hidden-00002*")
    states.write_bytes(states.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is not as it was written; use --overwrite"):
        quantize_checkpoint(source, tmp_path / "damaged", options, calibration_ids=ids)
    with pytest.raises(ValueError, match="with other options; use --overwrite"):
        quantize_checkpoint(source, target, options, calibration_ids=ids[:4])
    quantize_checkpoint(source, target, options, calibration_ids=ids)
    assert read_bytes(target) == read_bytes(tmp_path / "whole")


def test_too_little_text_rounds_and_says_so(source: Path, tmp_path: Path) -> None:
    options = QuantizeOptions("gptq", group_size=32, attention=True)
    report = quantize_checkpoint(source, tmp_path / "int4", options, calibration_ids=make_ids(1, 4))
    assert "model.layers.0.attention.query_key_value.weight" in report.rounded
    assert len(report.fallbacks[1]) == 8


def test_gptq_of_some_modules_only(source: Path, tmp_path: Path) -> None:
    """Attention left as it is, and down projections whose columns the group does not divide."""
    options = QuantizeOptions("gptq", group_size=64, attention=False)
    quantize_checkpoint(source, tmp_path / "int4", options, calibration_ids=make_ids(4, 64))
    before, after = load_file(source / "model.safetensors"), read_folder(tmp_path / "int4")
    for name in ("attention.dense", "mlp.experts.3.down_proj"):
        assert torch.equal(after[f"model.layers.1.{name}.weight"], before[f"model.layers.1.{name}.weight"])
    assert "model.layers.1.mlp.experts.3.up_proj.weight_packed" in after


def test_int4_changes_no_weight_of_the_embedded_model_and_nothing_that_it_says(tmp_path: Path) -> None:
    report = quantize_checkpoint(EMBEDDED, tmp_path / "int4", QuantizeOptions(group_size=32))
    assert set(report.errors) == {"dense layers", "routed experts", "shared experts"}
    assert all(worst == 0 for _, _, worst, _ in report.errors.values())
    passages = [Passage("p1", "d1", "letter.pdf", 1, 0, 44, "Sodium 129 mmol/L on 3 May. Potassium 4.4 mmol/L")]
    messages = render("What was the sodium?", passages)
    said = [
        "".join(event.text for event in generator.stream(messages, GREEDY) if isinstance(event, TextChunk)).strip()
        for generator in (LocalGenerator.load(folder, threads=1) for folder in (EMBEDDED, tmp_path / "int4"))
    ]
    assert said == ["Sodium 129 mmol/L on 3 May [1]."] * 2


def test_gptq_needs_text_enough(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs calibration text"):
        quantize_checkpoint(source, tmp_path / "int4", QuantizeOptions("gptq", group_size=32))
    with pytest.raises(ValueError, match="has 5 tokens"):
        read_calibration(source, "1 2 3", 1000)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.3.up_proj.weight", "model.norm.weight"])
def test_nan_and_infinity_are_named(source: Path, tmp_path: Path, name: str, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[7] = value

    bad = edit_weights(source, tmp_path / "bad", spoil)
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor {name} holds NaN or infinity"):
        quantize_checkpoint(bad, tmp_path / "int4", RTN)
    assert not (tmp_path / "int4" / "config.json").exists()


def test_missing_left_over_and_misshapen_tensors_are_named(source: Path, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    missing = edit_weights(source, tmp_path / "missing", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        quantize_checkpoint(missing, tmp_path / "int4", RTN)
    extra = edit_weights(source, tmp_path / "extra", lambda tensors: tensors.update(extra=torch.ones(1)))
    with pytest.raises(CheckpointError, match="extra has no place"):
        quantize_checkpoint(extra, tmp_path / "int4", RTN)
    shape = edit_weights(source, tmp_path / "shape", lambda tensors: tensors.update({name: torch.ones(8, 8)}))
    with pytest.raises(CheckpointError, match=re.escape(f"{name} has shape (8, 8)")):
        quantize_checkpoint(shape, tmp_path / "int4", RTN)


def test_a_quantized_source_is_refused(rounded: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantized by 'compressed-tensors' already"):
        quantize_checkpoint(rounded, tmp_path / "again", RTN)


def test_a_wrong_target_is_refused_and_left_alone(source: Path, tmp_path: Path) -> None:
    before = read_bytes(source)
    for target in (source, source / "int4", source / ".." / source.name):
        with pytest.raises(ValueError, match="give another folder"):
            quantize_checkpoint(source, target, RTN, overwrite=True)
    assert read_bytes(source) == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.safetensors").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="not begun by this command"):
        quantize_checkpoint(source, tmp_path / "home", RTN, overwrite=True)
    assert (tmp_path / "home" / "thesis.safetensors").read_text(encoding="utf-8") == "mine"
    with pytest.raises(ValueError, match="is a file"):
        quantize_checkpoint(source, tmp_path / "home" / "thesis.safetensors", RTN)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: QuantizeOptions(method="awq"), "'awq'; use one of rtn, gptq"),
        (lambda: QuantizeOptions(group_size=12), "12; it must be a multiple of 8"),
        (lambda: QuantizeOptions(act_order=True), "use it with method gptq"),
    ],
)
def test_bad_options(make: Callable[[], QuantizeOptions], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_group_that_fits_nothing_and_a_tied_head_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 1024; use a smaller"):
        quantize_checkpoint(source, tmp_path / "int4", QuantizeOptions(group_size=1024))
    save_checkpoint(make_model(tie_word_embeddings=True), tmp_path / "tied")
    with pytest.raises(ValueError, match="no lm_head of its own"):
        quantize_checkpoint(tmp_path / "tied", tmp_path / "int4", QuantizeOptions(group_size=32, lm_head=True))
