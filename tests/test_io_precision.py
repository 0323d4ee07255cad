"""`--io-precision`: a graph takes and gives the 16-bit format that it computes in, and all around it follows."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from PIL import Image

from ropevit_export import cli
from ropevit_export.backends.emulation import Emulated
from ropevit_export.backends.onnxruntime import OnnxRuntime
from ropevit_export.backends.tensorrt_rtx import TensorRtRtx
from ropevit_export.bundle import golden
from ropevit_export.errors import BackendError, InputError
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.runtime import load
from ropevit_export.values import Resolution
from tests.conftest import HAS_BFLOAT16, golden_of

DIGITS = ("--model", "rope_mixed_deit_digits", "--res", "32", "-q")
SIZE = Resolution.parse("32")
TYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16, "uint8": onnx.TensorProto.UINT8}


def exported(folder: Path, *options: str) -> Path:
    model = () if "--model" in options else DIGITS
    assert cli.run([*model, "--engine", "none", "-q", *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 graph between float32 ends."""
    return exported(tmp_path_factory.mktemp("bundles") / "single", "--precision", "fp16")


@pytest.fixture(scope="module", params=["fp16", "bf16", "int8", "fp8"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    precision = request.param
    calib = ("--calib", "digits") if precision in ("int8", "fp8") else ()
    ends = "bf16" if precision == "bf16" else "fp16"
    folder = tmp_path_factory.mktemp("bundles") / precision
    return exported(folder, "--precision", precision, *calib, "--io-precision", ends)


def dtype_of(bundle: Path) -> str:
    return "bfloat16" if bundle.name == "bf16" else "float16"


def test_onnx_agrees_that_the_ends_have_the_format(bundle: Path) -> None:
    dtype = dtype_of(bundle)
    for path in bundle.glob("*.onnx"):
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False).graph
        ends = [*graph.input, *graph.output]
        assert {end.type.tensor_type.elem_type for end in ends} == {TYPES[dtype]}
        casts = [node for node in graph.node if node.op_type == "Cast"]
        borders = [node for node in casts if {*node.input, *node.output} & {"image", "logits"}]
        # where bfloat16 keeps its first and last product higher, and ONNX Runtime's form of int8 computes in float32
        in_float32 = bundle.name == "int8" and path.stem.endswith("onnxruntime")
        assert len(borders) == (2 if bundle.name == "bf16" or in_float32 else 0)


def test_every_file_of_the_bundle_says_the_format(bundle: Path) -> None:
    dtype = dtype_of(bundle)
    listed = json.loads((bundle / "manifest.json").read_text())
    assert listed["preprocess"]["dtype"] == dtype
    for artifact in listed["artifacts"]:
        assert [each["dtype"] for each in (*artifact["inputs"], *artifact["outputs"])] == [dtype, dtype]
        props = onnx.load(bundle / artifact["path"], load_external_data=False).metadata_props
        assert json.loads(next(each.value for each in props if each.key == "preprocess"))["dtype"] == dtype
    image, expected = golden_of(bundle / golden.name(SIZE))
    assert (image.dtype, expected.dtype) == (np.dtype(dtype), np.dtype(np.float32))
    assert f"which the graph takes in {dtype}" in (bundle / "report.md").read_text()


def test_every_verb_takes_the_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(bundle)]) == 0
    assert cli.run(["check", str(bundle), "--by-layer"]) == 0
    capsys.readouterr()
    assert cli.run(["eval", str(bundle), "--data", "digits", "--limit", "40", "--json", "-q"]) == 0
    assert all(row["top1"] >= 95 for row in json.loads(capsys.readouterr().out)["accuracy"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_host_feeds_and_gets_the_format(bundle: Path, backend: str) -> None:
    if bundle.name == "bf16" and backend == "onnxruntime":
        pytest.skip("it has no bfloat16 on the CPU")
    if bundle.name == "bf16" and not HAS_BFLOAT16:
        pytest.skip("OpenVINO computes in bfloat16 only where the CPU does")
    model = load(bundle, backend)
    with Image.open(PHOTOS[0]) as photo:
        image = model.prepare(photo)
    given, expected = golden_of(bundle / golden.name(SIZE))
    assert image.dtype == dtype_of(bundle)
    assert np.array_equal(image, given[1:2])
    answer = model.run(image)
    assert answer.dtype == dtype_of(bundle)
    limit = {"fp16": 1.5e-2, "bf16": 1.5e-1, "int8": 3e-1, "fp8": 8e-1}[bundle.name] * np.sqrt((expected**2).mean())
    np.testing.assert_allclose(answer.astype(np.float32), expected[1:2], atol=limit)


def test_another_format_is_refused_not_converted(bundle: Path) -> None:
    wanted = rf"float32 images of shape \(1, 3, 32, 32\) were given, needed {dtype_of(bundle)} \(B, 3, H, W\)"
    with pytest.raises(InputError, match=wanted):
        load(bundle).run(np.zeros((1, 3, 32, 32), np.float32))


def test_answers_are_those_of_float32_ends_rounded(single: Path, tmp_path: Path) -> None:
    """The cast that is gone was the rounding that the host now does. ONNX Runtime itself may drop it, emulation not."""
    half = exported(tmp_path / "half", "--precision", "fp16", "--io-precision", "fp16")
    image, _ = golden_of(half / golden.name(SIZE))
    exact, _ = golden_of(single / golden.name(SIZE))
    assert np.array_equal(image, exact.astype(np.float16))
    ours, theirs = (
        Emulated(folder / "model-32.onnx", precision="fp16").run({"image": given[:1]})["logits"]
        for folder, given in ((half, image), (single, exact))
    )
    assert np.array_equal(ours, theirs)


def test_raw_pixels_stay_and_only_answers_are_narrow(tmp_path: Path) -> None:
    path = exported(tmp_path / "b", "--precision", "fp16", "--io-precision", "fp16", "--pixels")
    listed = json.loads((path / "manifest.json").read_text())
    assert listed["preprocess"]["dtype"] == "uint8"
    for artifact in listed["artifacts"]:
        assert [each["dtype"] for each in (*artifact["inputs"], *artifact["outputs"])] == ["uint8", "float16"]
    assert load(path).run(np.zeros((1, 32, 32, 3), np.uint8)).dtype == np.float16


def test_position_inputs_have_the_format_too(tmp_path: Path) -> None:
    options = ("--model", "shallow_rope_mixed_ape_deit_small", "--res", "32x64", "--rope", "inputs", "--batch", "1:2:4")
    path = exported(tmp_path / "b", *options, "--weights", "random", "--precision", "fp16", "--io-precision", "fp16")
    for artifact in json.loads((path / "manifest.json").read_text())["artifacts"]:
        assert [(each["name"], each["dtype"]) for each in artifact["inputs"]] == [
            (name, "float16") for name in ("image", "cos", "sin", "pos_embed")
        ]
    image, expected = golden_of(path / golden.name(Resolution.parse("32x64")))
    for backend in ("onnxruntime", "openvino"):
        answer = load(path, backend).run(image[:1])
        np.testing.assert_allclose(answer, expected[:1], atol=1.5e-2 * np.sqrt((expected**2).mean()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--io-precision", "fp16"), "but the precision is fp32: needs --precision fp16 or int8 or fp8."),
        (("--io-precision", "bf16", "--precision", "fp16"), "but the precision is fp16: needs --precision bf16."),
        (("--io-precision", "fp16", "--precision", "bf16"), "but the precision is bf16: needs --precision fp16 or"),
        (("--io-precision", "bf16", "--precision", "int8", "--calib", "digits"), "needs --precision bf16."),
    ],
)
def test_a_format_that_the_graph_does_not_compute_in_is_refused(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*DIGITS, *arguments, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {' '.join(arguments[:2])} is for graphs that compute in it, ")
    assert sentence in err
    assert err.count("\n") == 1


def test_onnxruntime_has_no_arrays_of_bfloat16(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bfloat16[1] image) => (float[1] logits) { logits = Cast <to = 1> (image) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="no bfloat16 arrays, which m.onnx takes or gives: use OpenVINO, or --io-pr"):
        OnnxRuntime(tmp_path / "m.onnx")


@pytest.mark.skipif(not HAS_BFLOAT16, reason="OpenVINO computes in bfloat16 only where the CPU does")
def test_openvino_gives_bfloat16_as_such(tmp_path: Path) -> None:
    openvino = pytest.importorskip("ropevit_export.backends.openvino")
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (bfloat16[3] image) => (bfloat16[3] logits) { logits = Neg (image) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    image = np.array([1, -2.5, 0.1], ml_dtypes.bfloat16)
    answer = openvino.OpenVino(tmp_path / "m.onnx", precision="bf16").run({"image": image})["logits"]
    assert answer.dtype == ml_dtypes.bfloat16
    assert np.array_equal(answer, -image)


@pytest.mark.parametrize(("precision", "options"), [("fp16", ()), ("bf16", ()), ("int8", ("--calib", "digits"))])
def test_an_engine_reads_and_writes_the_format(precision: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """The builder's own report: no kernel touches a float32 image or answer."""
    try:
        TensorRtRtx()
    except BackendError as error:
        pytest.skip(str(error))
    ends = "bf16" if precision == "bf16" else "fp16"
    arguments = (*DIGITS, "--engine", "tensorrt-rtx", "--sm", "89", "--precision", precision, "--io-precision", ends)
    assert cli.run([*arguments, *options, "--out", str(tmp_path / "b")]) == 0
    layers = json.loads((tmp_path / "b" / "model-32.rtx.engine.layers.json").read_text())["layers"]
    tensors = [tensor for layer in layers for tensor in (*layer["inputs"], *layer["outputs"])]
    found = {tensor["name"]: tensor["dtype"] for tensor in tensors if tensor["name"] in ("image", "logits")}
    kind = "BFloat16" if precision == "bf16" else "Half"
    assert found == {"image": kind, "logits": kind}
