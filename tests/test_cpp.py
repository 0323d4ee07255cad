"""The C++ library: built once, run by CTest on small bundles, called through its C interface, and used by programs.

"Theirs" is Pillow, or the Python runtime in a session with the same settings.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import PIL
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from ropevit_export import cli, tuned
from ropevit_export.errors import BundleError
from ropevit_export.images.preprocess import crop, normalise
from ropevit_export.machine import hardware
from ropevit_export.models.spec import Transform
from ropevit_export.parity.samples import PHOTOS
from ropevit_export.runtime import load
from ropevit_export.values import Resolution
from tests import cpp_cases, cpp_library
from tests.cpp_library import RopevitError
from tests.faults import bundles
from tests.faults.table import EDITED, POSITIONS, Row
from tests.test_tune import made as tuned_for

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "cpp"
# Of ONNX Runtime's sessions, ours and theirs: other tests run beside these.
THREADS = 1
Pixels = npt.NDArray[np.uint8]


def missing(reason: str) -> Any:
    """A machine without a compiler has nothing to test, which CI would not notice."""
    if os.environ.get("CI"):
        pytest.fail(f"the C++ library can't be built: {reason}")
    pytest.skip(f"the C++ library can't be built: {reason}")


def done(*command: str | Path, code: int = 0, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command printed, on both streams; its exit code must be `code`."""
    given = [str(part) for part in command]
    ran = subprocess.run(
        given,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=1500,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == code, f"{' '.join(given)} left with {ran.returncode}, needed {code}:\n{said[-4000:]}"
    return said


@functools.cache
def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or missing(f"there is no {name}: pip install 'ropevit-export[test]' has cmake and ninja, not g++.")


def build(folder: Path, *options: str, targets: tuple[str, ...] = (), compiler: str = "") -> Path:
    """All, or the targets that are named."""
    headers = subprocess.run(
        [ROOT / "scripts" / "fetch_headers"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    if headers.returncode:
        missing(headers.stderr.strip())
    compiler = compiler or tool(os.environ.get("CXX", "g++"))
    configure = (
        tool("cmake"),
        "-S",
        ROOT / "cpp",
        "-B",
        folder,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
    )
    done(*configure, f"-DCMAKE_CXX_COMPILER={compiler}", "-DROPEVIT_TESTS=ON", *options)
    done(tool("ninja"), "-C", folder, *targets)
    return folder


@pytest.fixture(scope="session")
def built() -> Path:
    return build(BUILD)


@pytest.fixture(scope="session")
def cases(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "ROPEVIT_TEST_CASES" in os.environ:  # made before, by `python -m tests.cpp_cases`
        return Path(os.environ["ROPEVIT_TEST_CASES"])
    folder = tmp_path_factory.mktemp("cases")
    for name, case in cpp_cases.CASES.items():
        if case.default:
            cpp_cases.make(name, folder, THREADS)
    return folder


@pytest.fixture(scope="session")
def environment(cases: Path) -> dict[str, str]:
    return cpp_cases.environment(cases, THREADS)


@pytest.fixture(scope="session")
def library(built: Path) -> cpp_library.Library:
    return cpp_library.Library(built / "libropevit.so")


@pytest.fixture
def loaded(library: cpp_library.Library, cases: Path, environment: dict[str, str]) -> Callable[..., cpp_library.Model]:
    """A case's bundle, or another folder, in ONNX Runtime."""

    def make(bundle: str | Path) -> cpp_library.Model:
        folder = cases / bundle / "bundle" if isinstance(bundle, str) else bundle
        return cpp_library.Model(library, folder, path=environment["ROPEVIT_ONNXRUNTIME"], threads=THREADS)

    return make


def test_ctest(built: Path, environment: dict[str, str]) -> None:
    """Answers of every case, many threads, allocations, engines on a GPU that is made up, and readers on odd files."""
    said = done("ctest", "--test-dir", built, "--output-on-failure", env=environment)
    assert re.search(r"100% tests passed(, 0 tests failed)? out of 8\n", said)  # CMake 4.4 leaves the middle out


def test_16_bit_numbers_are_rounded_as_numpy_does(built: Path, tmp_path: Path) -> None:
    """Around every number where rounding turns, in every power of two; and all of 16 bits as float32."""
    turns = [0, 1, 0x7FF, 0x800, 0xFFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x3FFFFF,
             0x400000, 0x7FEFFF, 0x7FF000, 0x7F7FFF, 0x7F8000, 0x7FFFFF]  # fmt: skip
    exact = np.arange(512, dtype=np.uint32)[:, None] << 23 | np.array(turns, np.uint32)
    drawn = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32)
    numbers = np.concatenate([exact.ravel(), drawn]).view(np.float32)
    numbers.tofile(tmp_path / "in")
    done(built / "tests" / "half", tmp_path / "in", tmp_path / "out")
    found = np.fromfile(tmp_path / "out", np.uint8)
    rounded = found[: 4 * len(numbers)].view(np.uint16).reshape(-1, 2)
    widened = found[4 * len(numbers) :].view(np.float32).reshape(2**16, 2)
    for index, kind in enumerate((ml_dtypes.bfloat16, np.float16)):
        ours = np.ascontiguousarray(rounded[:, index]).view(kind)
        with np.errstate(over="ignore", invalid="ignore"):
            np.testing.assert_array_equal(ours.astype(np.float32), numbers.astype(kind).astype(np.float32))
        assert np.array_equal(np.signbit(ours), np.signbit(numbers))
        theirs = np.arange(2**16, dtype=np.uint16).view(kind).astype(np.float32)
        np.testing.assert_array_equal(widened[:, index], theirs)
        assert np.array_equal(np.signbit(widened[:, index]), np.signbit(theirs))


# Pictures ------------------------------------------------------------------------------------------------------------

BICUBIC = Transform(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop=1.0)
TRANSFORMS = (
    {"interpolation": "bicubic", "crop": 1.0, "crop_mode": "center"},
    {"interpolation": "bicubic", "crop": 0.875, "crop_mode": "center"},
    {"interpolation": "bilinear", "crop": 0.95, "crop_mode": "center"},
    {"interpolation": "bilinear", "crop": 1.0, "crop_mode": "squash"},
)


def pictures() -> list[tuple[Pixels, Resolution]]:
    """Photographs cut to odd sizes, single rows and columns, extreme ratios, and pictures smaller than what is made."""
    rng = np.random.default_rng(0)
    photos = [np.asarray(Image.open(path).convert("RGB")) for path in PHOTOS]
    found = []
    for index in range(208):
        photo = photos[index % len(photos)]
        # A single row becomes as many rows as are wanted, and as long a multiple: in Pillow that takes its time.
        longest = min(photo.shape[:2]) if index < 16 or index % 8 in (0, 5, 6) else 90
        height, width = (int(rng.integers(1, longest + 1)) for _ in range(2))
        height, width = [(height, width), (1, width), (height, 1), (height, height // 9 + 1), (width // 9 + 1, width),
                         (height % 40 + 1, width % 40 + 1), (height, width), photo.shape[:2]][index % 8]  # fmt: skip
        top, left = (
            int(rng.integers(0, side - cut + 1)) for side, cut in zip(photo.shape, (height, width), strict=False)
        )
        size = Resolution(height=16 * int(rng.integers(1, 16)), width=16 * int(rng.integers(1, 16)))
        found.append((np.ascontiguousarray(photo[top : top + height, left : left + width]), size))
    return found


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda each: f"{each['interpolation']}-{each['crop_mode']}")
def test_pictures_are_pillows_and_pythons_to_the_bit(
    transform: dict[str, Any], cases: Path, loaded: Callable[..., cpp_library.Model], tmp_path: Path
) -> None:
    folder = edited(cases / "baked" / "bundle", tmp_path, lambda listed: listed["preprocess"].update(transform))
    ours, theirs = loaded(folder), load(folder)
    assert len(PHOTOS) > 1
    for picture, size in pictures():
        image = Image.fromarray(picture)
        cropped = ours.crop(picture, size.height, size.width)
        wanted = crop(image, theirs.preprocess, size)
        assert np.array_equal(cropped, wanted), (picture.shape, size)
        prepared = ours.prepare(picture, size.height, size.width)
        assert prepared.dtype == np.float32
        assert np.array_equal(prepared, normalise(wanted[None], theirs.preprocess)), (picture.shape, size)


def test_a_squashed_picture_is_what_pillow_alone_makes(
    cases: Path, loaded: Callable[..., cpp_library.Model], tmp_path: Path
) -> None:
    """No code of ours on the other side."""
    if int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow below 13 resizes tall pictures in another order")
    squash = TRANSFORMS[3] | {"interpolation": "bicubic"}
    ours = loaded(edited(cases / "baked" / "bundle", tmp_path, lambda listed: listed["preprocess"].update(squash)))
    for picture, size in pictures():
        theirs = Image.fromarray(picture).resize((size.width, size.height), Image.Resampling.BICUBIC)
        assert np.array_equal(ours.crop(picture, size.height, size.width), np.asarray(theirs)), (picture.shape, size)


def test_the_comparison_sees_one_grey_level(cases: Path, loaded: Callable[..., cpp_library.Model]) -> None:
    picture, size = pictures()[0]
    theirs = crop(Image.fromarray(picture), BICUBIC, size)
    changed = picture.copy()
    changed[:: max(1, len(picture) // 8)] ^= 8
    assert not np.array_equal(loaded("baked").crop(changed, size.height, size.width), theirs)


@pytest.mark.parametrize("case", ["pixels", "outputs", "inputs"])
def test_pictures_of_other_formats_are_pythons(
    case: str, cases: Path, loaded: Callable[..., cpp_library.Model]
) -> None:
    ours, theirs = loaded(case), load(cases / case / "bundle")
    for picture, size in pictures()[:24]:
        prepared = ours.prepare(picture, size.height, size.width)
        wanted = theirs.prepare(Image.fromarray(picture), size)
        assert prepared.dtype == wanted.dtype
        assert np.array_equal(prepared.view(np.uint8), wanted.view(np.uint8))


def test_rows_may_lie_apart_and_blue_may_come_first(loaded: Callable[..., cpp_library.Model]) -> None:
    model = loaded("baked")
    picture, _ = pictures()[7]
    height, width = picture.shape[:2]
    padded = np.full((height, width + 5, 3), 99, np.uint8)
    padded[:, :width] = picture
    wanted = model.crop(picture, 48, 32)
    assert np.array_equal(model.crop(padded[:, :width], 48, 32, pitch=3 * (width + 5)), wanted)
    turned = np.ascontiguousarray(picture[..., ::-1])
    assert np.array_equal(model.crop(turned, 48, 32, bgr=True), wanted)
    assert np.array_equal(model.prepare(turned, 48, 32, bgr=True), model.prepare(picture, 48, 32))
    upside_down = np.ascontiguousarray(picture[::-1])
    last = upside_down[-1:].ctypes.data
    pixels = cpp_library.Pixels(last, height, width, -3 * width, 0)
    out = np.empty((48, 32, 3), np.uint8)
    model._library.call("crop", model._model, ctypes.byref(pixels), 48, 32, ctypes.c_void_p(out.ctypes.data))
    assert np.array_equal(out, wanted)


def test_a_run_on_pictures_is_a_run_on_what_is_prepared(loaded: Callable[..., cpp_library.Model]) -> None:
    model = loaded("pixels")
    chosen = [picture for picture, _ in pictures()[5:8]]
    assert len({picture.shape for picture in chosen}) == 3
    together = np.concatenate([model.prepare(picture, 32, 64) for picture in chosen])
    ours, theirs = model.run_pictures(chosen, 32, 64), model.run(together)
    assert ours.keys() == theirs.keys() == {"logits"}
    assert np.array_equal(ours["logits"], theirs["logits"])


# Errors --------------------------------------------------------------------------------------------------------------


def edited(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle whose manifest says something else."""
    copy = folder / "edited"
    shutil.copytree(bundle, copy)
    path = copy / "manifest.json"
    listed = json.loads(path.read_text())
    change(listed)
    path.write_text(json.dumps(listed))
    return copy


def of_a_target(acts: dict[str, bundles.Act], group: tuple[Row, ...], case: str) -> list[object]:
    """Rows whose bundles the C++ library refuses, each with the case that it is done to."""
    return [pytest.param(each, acts[each.fault], case, id=each.fault) for each in group if each.target]


@pytest.mark.parametrize(
    ("row", "act", "case"),
    [
        *of_a_target(bundles.ACTS, EDITED, "baked"),
        *of_a_target(bundles.POSITION_ACTS, POSITIONS, "inputs"),
    ],
)
def test_what_check_refuses_is_refused_on_a_target(
    row: Row, act: bundles.Act, case: str, built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Bundles from strangers, of the list that Python's readers are tested with."""
    folder = shutil.copytree(cases / case / "bundle", tmp_path / "bundle")
    act(folder)
    said = done(built / "ropevit-verify", folder, code=1, env=environment)
    assert row.target in said
    assert said.splitlines()[-1].startswith("error: ")


BAD_MANIFESTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda m: m.pop("preprocess"), "is not a manifest of schema 1: the file: it has no preprocess"),
    (lambda m: m["artifacts"][1].update(precision=7), r"artifacts.1.precision: 7 was given, needs text"),
    (lambda m: m["preprocess"].update(crop=0), "preprocess.crop: a number from 0.05 to 1 is needed"),
    (lambda m: m["artifacts"][1]["outputs"][0].update(shape=[2, 1000]), "logits in another format or shape"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_MANIFESTS, ids=[sentence for _, sentence in BAD_MANIFESTS])
def test_a_bundle_that_is_loaded_is_read_as_strictly(
    change: Callable[[dict[str, Any]], object],
    sentence: str,
    cases: Path,
    loaded: Callable[..., cpp_library.Model],
    tmp_path: Path,
) -> None:
    folder = edited(cases / "baked" / "bundle", tmp_path, change)
    with pytest.raises(RopevitError, match=sentence) as error:
        loaded(folder).run(np.zeros((1, 3, 32, 32), np.float32))
    assert error.value.status == "bundle"


def test_a_manifest_may_say_more_than_this_library_knows(
    cases: Path, loaded: Callable[..., cpp_library.Model], tmp_path: Path
) -> None:
    assert loaded(edited(cases / "baked" / "bundle", tmp_path, lambda m: m.update(new={"field": 1}))).sizes == [
        (32, 32)
    ]


def test_manifests_of_the_first_release_are_read(
    cases: Path, loaded: Callable[..., cpp_library.Model], tmp_path: Path
) -> None:
    def older(listed: dict[str, Any]) -> None:
        del listed["patch"], listed["prefix"], listed["preprocess"]["crop_mode"], listed["choices"], listed["notes"]
        del listed["artifacts"][1:]  # it knew no forms
        (artifact,) = listed["artifacts"]
        del artifact["form"], artifact["dynamic"]["patch"], artifact["dynamic"]["prefix"]

    folder = edited(cases / "inputs" / "bundle", tmp_path, older)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)
    with cpp_cases.threads_of_python(THREADS):
        theirs = load(folder).run(image)
    assert np.array_equal(loaded(folder).run(image)["logits"], theirs)


def test_what_is_no_bundle_is_an_error(loaded: Callable[..., cpp_library.Model], tmp_path: Path) -> None:
    with pytest.raises(RopevitError, match="is not a bundle: it has no manifest.json"):
        loaded(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1')
    with pytest.raises(RopevitError, match="is not a manifest of schema 1: behind 'schema_version': parse error"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("shape", "dtype", "sentence"),
    [
        ((1, 3, 64, 48), np.float32, "no graph for 64x48: the bundle serves multiples of 16 up to 48x48"),
        ((1, 3, 40, 48), np.float32, "no graph for 40x48"),
        ((2, 3, 48, 48), np.float32, "a batch of 2 was given, model-inputs.onnxruntime.onnx takes 1"),
        ((1, 3, 48, 48), np.float16, r"float16 images were given, needed float32 \(B, 3, H, W\)"),
    ],
)
def test_what_a_bundle_cannot_take_is_an_error(
    shape: tuple[int, ...], dtype: type, sentence: str, loaded: Callable[..., cpp_library.Model]
) -> None:
    with pytest.raises(RopevitError, match=sentence) as error:
        loaded("inputs").run(np.zeros(shape, dtype))
    assert error.value.status == "input"


def test_pictures_that_are_none_are_errors(loaded: Callable[..., cpp_library.Model]) -> None:
    model = loaded("baked")
    with pytest.raises(RopevitError, match="a picture of 0x5 pixels was given"):
        model.crop(np.zeros((0, 5, 3), np.uint8), 32, 32)
    with pytest.raises(RopevitError, match="a pitch of 14 bytes was given, rows of 2x5 pixels need 15"):
        model.crop(np.zeros((2, 5, 3), np.uint8), 32, 32, pitch=14)
    with pytest.raises(RopevitError, match="can't be prepared for 0x32"):
        model.crop(np.zeros((2, 5, 3), np.uint8), 0, 32)


@pytest.mark.parametrize(
    ("backend", "path", "sentence"),
    [
        (
            "onnxruntime",
            "/nowhere/libonnxruntime.so",
            r"ONNX Runtime can't be loaded \(/nowhere.*pip install onnxruntime",
        ),
        ("openvino", "/nowhere/libopenvino_c.so", r"OpenVINO can't be loaded \(/nowhere.*pip install openvino"),
        ("tensorrt-rtx", "", "holds no tensorrt-rtx artifact for tensorrt-rtx: export it with --engine tensorrt-rtx"),
        ("coreml", "", "no backend 'coreml' runs a bundle: there are onnxruntime, onnxruntime-cuda"),
    ],
)
def test_a_runtime_that_is_missing_says_what_to_install(
    backend: str, path: str, sentence: str, library: cpp_library.Library, cases: Path
) -> None:
    with pytest.raises(RopevitError, match=sentence):
        cpp_library.Model(library, cases / "baked" / "bundle", backend, path=path)


def test_a_format_that_the_manifest_has_wrong_is_an_error_in_openvino(
    library: cpp_library.Library, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """It writes answers in the graph's format, over the end of memory for a smaller one."""
    folder = shutil.copytree(cases / "baked" / "bundle", tmp_path / "bundle")
    bundles.ACTS["an output's format"](folder)
    model = cpp_library.Model(library, folder, "openvino", path=environment["ROPEVIT_OPENVINO"])
    with pytest.raises(RopevitError, match="has logits in another format than the manifest lists") as error:
        model.run(np.zeros((1, 3, 32, 32), np.float32))
    assert error.value.status == "bundle"


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_can_not_be_had_is_an_error(
    backend: str, library: cpp_library.Library, cases: Path, environment: dict[str, str]
) -> None:
    """It does not fall back to the CPU."""
    path = environment["ROPEVIT_ONNXRUNTIME"]
    with pytest.raises(RopevitError, match="ONNX Runtime .* can't use .*ExecutionProvider .*onnxruntime-gpu") as error:
        cpp_library.Model(library, cases / "baked" / "bundle", backend, path=path)
    assert error.value.status == "backend"


# "auto" ---------------------------------------------------------------------------------------------------------------


TUNED_ROWS: list[tuple[tuned.Setting | None, dict[str, Any]]] = [
    (None, {}),
    (tuned.Setting(backend="onnxruntime", form="portable", threads=1), {}),
    (tuned.Setting(backend="onnxruntime", streams=2), {}),
    (tuned.Setting(backend="openvino", form="portable", compute="f32", streams=2), {}),
    (tuned.Setting(backend="onnxruntime"), {"manifest_sha256": "0" * 64}),
    (tuned.Setting(backend="onnxruntime"), {"machine": {"processor": "Z80", "features": [], "cores": 1}}),
    (tuned.Setting(backend="onnxruntime"), {"version": "0.1"}),
]


@pytest.mark.parametrize(("setting", "changes"), TUNED_ROWS)
def test_auto_takes_what_python_takes(
    setting: tuned.Setting | None,
    changes: dict[str, Any],
    library: cpp_library.Library,
    cases: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says so in the same words."""
    folder = shutil.copytree(cases / "baked" / "bundle", tmp_path / "bundle")
    if setting is not None:
        tuned.write(folder, tuned_for(folder, setting))
        path = folder / tuned.TUNED
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = cpp_library.Model(library, folder, "auto"), load(folder, "auto")
    assert ours.describe(32, 32) == theirs.describe(Resolution.parse("32"))
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(ours.run(image)["logits"], theirs.run(image), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chosen": {"backend": "pickle"}}, "chosen.backend: 'pickle' was given, there are onnxruntime, "),
        (
            {"chosen": {"backend": "onnxruntime", "threads": 10**9}},
            "chosen.threads: 1000000000 was given, needs a whole",
        ),
        ({"chosen": {"backend": "onnxruntime", "form": "openvino"}}, "holds no graph in the form openvino"),
        ({"machine": None}, "machine: null was given, needs an object.* Remove it, or run tune again"),
    ],
)
def test_a_tuned_file_that_is_none_is_an_error(
    changes: dict[str, Any],
    sentence: str,
    library: cpp_library.Library,
    cases: Path,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = shutil.copytree(cases / "baked" / "bundle", tmp_path / "bundle")
    tuned.write(folder, tuned_for(folder, tuned.Setting(backend="onnxruntime")))
    path = folder / tuned.TUNED
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(RopevitError, match=sentence) as error:
        cpp_library.Model(library, folder, "auto")
    assert error.value.status == "bundle"
    with pytest.raises(BundleError):
        load(folder, "auto")


def test_auto_chooses_itself(library: cpp_library.Library, cases: Path) -> None:
    with pytest.raises(RopevitError, match="chooses form and options itself: name a backend to choose them"):
        cpp_library.Model(library, cases / "baked" / "bundle", "auto", threads=1)


# Programs ------------------------------------------------------------------------------------------------------------


def test_verify_passes_a_good_bundle(built: Path, cases: Path, environment: dict[str, str]) -> None:
    said = done(built / "ropevit-verify", cases / "inputs" / "bundle", env=environment)
    assert "every file as listed, 16 of 16 comparisons within tolerance, 0 artifacts not run here" in said
    assert re.search(r"model-inputs.onnx +48x48 +1  logits .* 0.0001, 0.99999999 +good", said)
    assert re.search(r"cos \(filled\) +0.0e\+00 +0.0e\+00 +1.00000000  0, 1 +good", said)
    said = done(built / "ropevit-verify", cases / "inputs" / "bundle", "--backend", "openvino", env=environment)
    assert "run on OpenVINO" in said
    assert "computed in f32" in said


def test_golden_files_of_older_releases_hold_nothing_that_is_filled(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(cases / "inputs" / "bundle", tmp_path / "bundle")
    for path in sorted(folder.glob("golden-*.safetensors")):
        with safe_open(path, "np") as file:
            kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("filled.")}  # noqa: SIM118
        save_file(kept, path)
        bundles.rehash(folder, path.name)
    said = done(built / "ropevit-verify", folder, env=environment)
    assert "every file as listed, 4 of 4 comparisons within tolerance, 0 artifacts not run here" in said


def test_what_onnx_runtime_would_tidy_up_is_not_said(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """It warns of every weight that nothing reads, on the host's stderr."""
    folder = shutil.copytree(cases / "baked" / "bundle", tmp_path / "bundle")
    model = onnx.load(folder / "model-32.onnx", load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "unused"))
    onnx.save(model, folder / "model-32.onnx")
    bundles.rehash(folder, "model-32.onnx")
    said = done(built / "ropevit-verify", folder, env=environment)
    assert "every file as listed" in said
    assert "onnxruntime:" not in said


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_behind_links_is_run(
    backend: str, built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """As caches keep one: every file a link to another name elsewhere."""
    blobs = shutil.copytree(cases / "baked" / "bundle", tmp_path / "blobs")
    folder, temporary = tmp_path / "bundle", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    for number, path in enumerate(sorted(blobs.iterdir())):
        (folder / path.name).symlink_to(path.rename(blobs / str(number)))
    env = {**environment, "TMPDIR": str(temporary)}
    said = done(built / "ropevit-verify", folder, "--backend", backend, env=env)
    assert "every file as listed" in said
    assert not list(temporary.glob("ropevit-*"))  # ONNX Runtime leaves a file of its own


def test_openvino_computes_in_what_it_is_asked_for(
    library: cpp_library.Library, cases: Path, environment: dict[str, str]
) -> None:
    bundle, path = cases / "baked" / "bundle", environment["ROPEVIT_OPENVINO"]
    with pytest.raises(RopevitError, match="to compute in 'f16': it takes f32 or bf16"):
        cpp_library.Model(library, bundle, "openvino", path=path, compute="f16")
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(hardware.cpu_features()):
        cpp_library.Model(library, bundle, "openvino", path=path, compute="bf16")
    else:
        with pytest.raises(RopevitError, match="in bf16, CPU takes f"):
            cpp_library.Model(library, bundle, "openvino", path=path, compute="bf16")


def with_flipped_exponent(folder: Path) -> None:
    """The highest bit of the exponent that is set in one weight of the patch embedding's like: the largest below 1."""
    path = folder / "weights.data"
    content = bytearray(path.read_bytes())
    at = 4 * int(np.abs(np.frombuffer(content, np.float32)).clip(0, 0.999).argmax())
    (bits,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, bits ^ 1 << 27)
    path.write_bytes(content)
    bundles.rehash(folder, "weights.data")


def truncated(folder: Path) -> None:
    path = folder / "weights.data"
    path.write_bytes(path.read_bytes()[:-100])


def truncated_and_rehashed(folder: Path) -> None:
    truncated(folder)
    bundles.rehash(folder, "weights.data")


def wrong_positions(folder: Path) -> None:
    """One bit of one table's float, in a corner that these sizes read."""
    path = folder / "positions.safetensors"
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header["cos_x"]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    bundles.rehash(folder, path.name)


@pytest.mark.parametrize(
    ("case", "damage", "code", "sentence"),
    [
        ("baked", with_flipped_exponent, 3, "error: .* comparisons are out of tolerance"),
        ("inputs", wrong_positions, 3, "error: .* comparisons are out of tolerance"),
        ("baked", truncated, 1, "weights.data has SHA-256 .* it was changed or damaged"),
        ("baked", truncated_and_rehashed, 1, "ONNX Runtime refuses model-32.onnx"),
        ("baked", lambda folder: (folder / "model-32.onnx").unlink(), 1, "lacks model-32.onnx"),
        ("baked", lambda folder: (folder / "more").write_text(""), 1, "holds more, which its manifest does not list"),
        ("baked", shutil.rmtree, 1, "is not a bundle"),
    ],
)
def test_verify_sees_what_is_wrong(
    case: str,
    damage: Callable[[Path], object],
    code: int,
    sentence: str,
    built: Path,
    cases: Path,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(cases / case / "bundle", folder)
    damage(folder)
    assert re.search(sentence, done(built / "ropevit-verify", folder, code=code, env=environment))


def test_verify_says_of_an_engine_that_it_was_not_run(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """An engine is no failure where it can't run, unless it is asked for."""
    folder = tmp_path / "bundle"
    shutil.copytree(cases / "baked" / "bundle", folder)
    (folder / "model-32.rtx.engine").write_bytes(b"of another machine")
    path = folder / "manifest.json"
    listed = json.loads(path.read_text())
    engine = {**listed["artifacts"][0], "kind": "tensorrt-rtx", "path": "model-32.rtx.engine", "files": []}
    listed["artifacts"].append(engine)
    path.write_text(json.dumps(listed))
    bundles.rehash(folder, "model-32.rtx.engine")
    said = done(built / "ropevit-verify", folder, env=environment)
    assert "model-32.rtx.engine: not run here: this ropevit was built without TensorRT-RTX: configure it with" in said
    assert "1 artifacts not run here" in said
    said = done(built / "ropevit-verify", folder, "--backend", "tensorrt-rtx", code=1, env=environment)
    assert "error: model-32.rtx.engine: not run here" in said


@pytest.mark.parametrize("program", ["ropevit-verify", "ropevit-run"])
def test_programs_know_their_usage(program: str, built: Path) -> None:
    assert f"usage: {program} BUNDLE" in done(built / program, "--help")
    assert "error: give " in done(built / program, code=2)
    assert "there is no option --bakend; --help lists them" in done(built / program, "--bakend", "x", code=2)
    assert "--threads was given 'two', needed a whole number" in done(
        built / program, "b", "i", "--threads=two", code=2
    )


def picture_files(folder: Path) -> list[Path]:
    """JPEG in colour and grey, PNG in colour, with alpha, with a palette, interlaced or not."""
    with Image.open(PHOTOS[0]) as photo:
        small = photo.convert("RGB").resize((97, 61))
    files = {"colour.jpg": small, "grey.jpg": small.convert("L"), "colour.png": small, "grey.png": small.convert("L"),
             "palette.png": small.quantize(64)}  # fmt: skip
    alpha = small.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(small.size))
    for name, image in {**files, "alpha.png": alpha}.items():
        image.save(folder / name)
    small.save(folder / "progressive.jpg", progressive=True, quality=60)
    return sorted(folder.glob("*.*"))


def test_run_prints_pythons_largest_logits(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    bundle, files = cases / "baked" / "bundle", picture_files(tmp_path)
    said = done(built / "ropevit-run", bundle, *files, "--threads", str(THREADS), env=environment)
    model = load(bundle)
    for file in files:
        with Image.open(file) as image, cpp_cases.threads_of_python(THREADS):
            logits = model.run(model.prepare(image))[0]
        for place in np.argsort(-logits)[:5]:
            assert f"{file}: class {place}, logit {logits[place]:.4f}" in said
    assert "ONNX Runtime" in said
    assert "UNTRAINED weights" in said


def test_run_writes_features_as_numpy_reads_them(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    bundle, out, (file, *_) = cases / "outputs" / "bundle", tmp_path / "out", picture_files(tmp_path)
    done(
        built / "ropevit-run", bundle, file, "--size", "32x48", "--out", out, "--threads", str(THREADS), env=environment
    )
    model, size = load(bundle), Resolution.parse("32x48")
    with Image.open(file) as image, cpp_cases.threads_of_python(THREADS):
        theirs = model.run_all(np.repeat(model.prepare(image, size), 2, 0))
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{file.name}.{name}.npy" for name in theirs)
    for name, wanted in theirs.items():
        ours = np.load(out / f"{file.name}.{name}.npy")
        assert ours.dtype == np.float16
        assert ours.shape == wanted.shape
        assert np.array_equal(ours, wanted)


def test_run_times_runs(built: Path, cases: Path, environment: dict[str, str]) -> None:
    said = done(built / "ropevit-run", cases / "baked" / "bundle", PHOTOS[0], "--bench", "--runs", "5", env=environment)
    assert re.search(r"prepare +5 runs, ms: min [\d.]+, p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, max [\d.]+", said)
    assert re.search(r"run +5 runs, ms: min [\d.]+", said)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is neither a JPEG nor a PNG file"),
        (b"\x89PNG\r\n\x1a\nand nothing", "can't be read as a PNG"),
        (b"\xff\xd8\xff\xe0and nothing", "can't be read as a JPEG"),
        (PHOTOS[0].read_bytes()[:3000], "can't be read as a JPEG: Premature end of JPEG file"),
    ],
)
def test_run_refuses_what_is_no_picture(
    content: bytes, sentence: str, built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(content)
    said = done(built / "ropevit-run", cases / "baked" / "bundle", tmp_path / "file", code=1, env=environment)
    assert sentence in said


# The page ------------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_command_of_the_page(built: Path, environment: dict[str, str]) -> None:
    """In a shell, one after the other, as a reader would, from the repository's root; the library is built already."""
    for made in ("installed", "digits", "example"):
        shutil.rmtree(built.parent / made, ignore_errors=True)
    script = "set -euo pipefail\n" + "\n".join(commands(ROOT / "docs" / "cpp.md"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = done("bash", "-c", script, env={"PATH": path, "OMP_NUM_THREADS": "1"})
    assert "comparisons within tolerance" in said
    assert "coffee.jpg: class " in said
    assert re.search(r"rope_mixed_deit_digits: \d+ bytes of logits, the first is", said)
    installed = {path.name for path in (built.parent / "installed").rglob("*") if path.is_file()}
    assert {"ropevit.hpp", "ropevit.h", "ropevitConfig.cmake", "ropevit-run", "ropevit-verify"} < installed


def test_the_example_is_built_far_from_the_sources(
    built: Path, cases: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """From an installed package that has been moved since."""
    done(tool("cmake"), "--install", built, "--prefix", tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert cli.run(["cpp-example", str(tmp_path / "project")]) == 0
    binaries = tmp_path / "binaries"
    configure = (tool("cmake"), "-S", tmp_path / "project", "-B", binaries, "-G", "Ninja")
    options = (f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_PREFIX_PATH={tmp_path / 'moved'}")
    done(*configure, *options, f"-DCMAKE_CXX_COMPILER={tool(os.environ.get('CXX', 'g++'))}")
    done(tool("ninja"), "-C", binaries)
    said = done(binaries / "example", cases / "baked" / "bundle", env=environment)
    assert re.search(r"rope_axial_deit_small\S*: 4000 bytes of logits, the first is", said)
    said = done(binaries / "example", tmp_path / "nothing", code=1, env=environment)
    assert "error: " in said
    assert "is not a bundle: it has no manifest.json" in said
    program = tmp_path / "moved" / "bin" / "ropevit-verify"
    assert "within tolerance" in done(program, cases / "baked" / "bundle", env=environment)


def test_the_example_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["cpp-example", str(tmp_path / "new" / "folder")]) == 0
    assert cli.run(["cpp-example", str(tmp_path / "new" / "folder")]) == 1
    assert "holds CMakeLists.txt, main.cpp already: name another folder" in capsys.readouterr().err


# Slow ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_family_and_mode(built: Path, tmp_path: Path) -> None:
    for name in cpp_cases.CASES:
        cpp_cases.make(name, tmp_path, THREADS)
    env = cpp_cases.environment(tmp_path, THREADS)
    done("ctest", "--test-dir", built, "--output-on-failure", "-R", "answers", env=env)


@pytest.mark.slow
def test_addresses_and_undefined_behaviour(environment: dict[str, str], cases: Path, tmp_path: Path) -> None:
    """All tests, and programs on files that were damaged at random."""
    built = build(
        ROOT / "build" / "cpp-address", "-DROPEVIT_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"
    )
    env = {**environment, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done("ctest", "--test-dir", built, "--output-on-failure", env=env)  # runtimes leak at exit: not ours to count
    rng = np.random.default_rng(0)
    for name in ("manifest.json", "golden-48.safetensors", "positions.safetensors"):
        for round_ in range(25):
            folder = tmp_path / f"{name}-{round_}"
            shutil.copytree(cases / "inputs" / "bundle", folder)
            content = bytearray((folder / name).read_bytes())
            head = min(len(content), 2000) if round_ % 2 else len(content)
            for _ in range(int(rng.integers(1, 4))):
                content[int(rng.integers(0, head))] = int(rng.integers(0, 256))
            (folder / name).write_bytes(content[: int(rng.integers(1, len(content)))] if round_ % 5 == 0 else content)
            if name != "manifest.json":
                bundles.rehash(folder, name)
            ran = subprocess.run(
                [built / "ropevit-verify", folder],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env={**os.environ, **env},
            )
            assert ran.returncode in (0, 1, 3), ran.stderr
            assert "Sanitizer" not in ran.stderr
            assert "runtime error" not in ran.stderr
            shutil.rmtree(folder)


@pytest.mark.slow
def test_many_calls_of_four_threads(built: Path, environment: dict[str, str]) -> None:
    """Under ThreadSanitizer, and without it: memory at the end is then what it was after the first tenth."""
    watched = build(
        ROOT / "build" / "cpp-thread", "-DROPEVIT_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        targets=("test_concurrent", "test_engine", "fake_gpu"),
    )  # fmt: skip
    options = f"halt_on_error=1 suppressions={ROOT / 'cpp' / 'tests' / 'tsan.supp'}"
    for folder in (watched, built):
        env = {**environment, "ROPEVIT_TEST_CALLS": "100000", "TSAN_OPTIONS": options}
        said = done(folder / "tests" / "test_concurrent", env=env)
        assert "100000 calls from 4 threads" in said
        assert "WARNING: ThreadSanitizer" not in said
    fake = watched / "tests" / "libfake_gpu.so"
    done(watched / "tests" / "test_engine", env={"FAKE_GPU": str(fake), "ROPEVIT_CUDART": str(fake)})


READERS = ("manifest", "positions", "golden", "pixels")


@pytest.mark.slow
def test_readers_on_files_that_libfuzzer_makes(tmp_path: Path) -> None:
    """A minute, from those of cpp/tests/corpus on, under AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = shutil.which("clang++") or pytest.skip("there is no clang++, which has libFuzzer")
    folder = build(
        ROOT / "build" / "cpp-fuzz", "-DROPEVIT_FUZZ=ON", "-DROPEVIT_SANITIZE=address,undefined",
        "-DROPEVIT_PROGRAMS=OFF", compiler=compiler, targets=("fake_gpu", *(f"fuzz_{name}" for name in READERS)),
    )  # fmt: skip
    fake = str(folder / "tests" / "libfake_gpu.so")
    env = {"FAKE_GPU": fake, "ROPEVIT_CUDART": fake, "TMPDIR": str(tmp_path)}
    for name in READERS:
        made = tmp_path / name
        made.mkdir()
        options = ("-max_total_time=15", "-max_len=20000", f"-artifact_prefix={tmp_path}/")
        said = done(
            folder / "tests" / f"fuzz_{name}", made, ROOT / "cpp" / "tests" / "corpus" / name, *options, env=env
        )
        assert re.search(r"Done [1-9]\d\d+ runs in 1[5-9] second", said)


@pytest.mark.slow
def test_one_binary_runs_with_many_releases_of_onnx_runtime(
    library: cpp_library.Library, cases: Path, environment: dict[str, str]
) -> None:
    """Those in ROPEVIT_ONNXRUNTIMES, a list of libraries: pip install --target FOLDER onnxruntime==1.20.1, …"""
    others = os.environ.get("ROPEVIT_ONNXRUNTIMES", "").split()
    if not others:
        pytest.skip("ROPEVIT_ONNXRUNTIMES names no libraries of other releases")
    bundle = cases / "baked" / "bundle"
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    wanted = load(bundle).run(image)
    for path in others:
        model = cpp_library.Model(library, bundle, path=path, threads=THREADS)
        (release,) = re.findall(r"libonnxruntime\.so\.([\d.]+)$", path)
        assert model.describe(32, 32).startswith(f"ONNX Runtime {release}, CPUExecutionProvider, float32")
        np.testing.assert_allclose(model.run(image)["logits"], wanted, atol=1e-5)
