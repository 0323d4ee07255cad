"""The command line as a user meets it: one clear line for each mistake, the right exit code, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ropevit_export import cli
from ropevit_export.cli import export, terminal
from ropevit_export.machine.process import Interrupted, interrupt
from ropevit_export.models.eva_rows import EVA02
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.zoo import EXAMPLES, MODELS, find_model
from ropevit_export.parity import tolerance
from tests.conftest import SMALL
from tests.rows import command_line

Run = Callable[..., tuple[int, str, str]]
SEEDED = ("--weights", "random", "--engine", "none", "-q", "--json", "--out", "out")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line in an empty folder where no hub can be reached: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.safetensors"
    save_file(dict(random_checkpoint(find_model(SMALL[1]), 1).tensors), path)
    return path


def assert_one_line(err: str, *parts: str) -> None:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [part for part in parts if part not in err] == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "rope_mixed_deit_bsae", "--res", "224"], ["unknown model", "rope_mixed_deit_base"]),
        (["--model", "deit_small", "--res", "390x384"], ["390x384 does not suit patch 16", "384 and 400"]),
        (["--model", "swin_tiny", "--res", "240"], ["window grid 32", "224 and 256"]),
        (["--model", "deit_small"], ["give at least one --res"]),
        (["--res", "224"], ["give --model NAME"]),
        (["--model", "deit_small", "--res", "big"], ["'big' is not a size"]),
        (["--model", "deit_small", "--res", "224,224"], ["named twice"]),
        (["--model", "deit_small", "--res", "224", "--batch", "8:1:2"], ["needs 1 <= min <= opt <= max"]),
        (["--model", "deit_small", "--res", "224", "--precision", "fp12"], ["fp12", "fp32"]),
        (["--model", "deit_small", "--res", "224", "--sm", "new"], ["is not a compute capability"]),
        (["--model", "deit_small", "--res", "224", "--engine", "none", "--engine", "auto"], ["excludes the others"]),
        (["--no-such-option"], ["No such option"]),
        (["--out", "foo", "--force"], ["give --model NAME"]),
        (["--model", "", "--res", "224"], ["give --model NAME"]),
        (["--model", "deit_small", "--res", "224", "--revision", "abc", "--weights", "random"], ["leave one out"]),
        (["--model", "deit_small", "--res", "224", "--sm", "90", "--engine", "none"], ["leave one out"]),
        (["--json", "models"], ["models takes no --json before its name"]),
        (["--model", "deit_small", "check", "x"], ["check takes no --model before its name"]),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    run: Run, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_one_line(err, *parts)
    assert list(tmp_path.iterdir()) == []


def test_help_and_models_say_all(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "--rope" in out
    code, out, _ = run("models")
    listed = [spec.name for spec in (*MODELS, *EXAMPLES)]
    assert len(out.splitlines()) == len(listed)
    code, out, _ = run("models", "--json")
    assert [row["name"] for row in json.loads(out)] == listed


def test_models_are_listed_by_family_or_one_by_one(run: Run) -> None:
    code, out, _ = run("models", "--family", "eva")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["EVA-02"] * len(EVA02))
    code, out, _ = run("models", "vit_pe_core_small_patch16_384")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (code, lines["licence"], lines["pooled"]) == (0, "apache-2.0", "map (can: token, avg, map)")
    assert lines["size"] == "384x384, any multiple of 16"
    code, out, _ = run("models", "rope_mixed_deit_digits")
    assert (code, "weights  in this package\n" in out) == (0, True)
    code, out, err = run("models", "--family", "resnet")
    assert (code, out) == (2, "")
    assert_one_line(err, "no family has 'resnet' in its name")
    code, out, err = run("models", "dinov3_small", "--family", "dino")
    assert (code, out) == (2, "")
    assert_one_line(err, "leave one out")


def test_without_a_hub_the_bundle_is_random_and_says_so(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SMALL)
    folder = tmp_path / "engines" / "shallow_rope_axial_deit_small-32-fp32-random"
    assert (code, err) == (0, "")
    assert "UNTRAINED" in out.splitlines()[-1]
    assert folder.name in out.splitlines()[-1]
    assert "UNTRAINED" in (folder / "report.md").read_text()
    listed = json.loads((folder / "manifest.json").read_text())
    assert listed["weights"]["trained"] is False
    assert listed["weights"]["remark"].startswith("UNTRAINED")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_a_hub_a_named_folder_still_says_random(run: Run, tmp_path: Path) -> None:
    """A script that deploys build/model must not find random weights there because the network was down."""
    code, _, _ = run(*SMALL, "--out", "build/model")
    assert code == 0
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["model-random"]


def test_without_a_hub_pretrained_is_an_error(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*SMALL, "--weights", "pretrained")
    assert (code, out) == (1, "")
    assert_one_line(err, "--weights pretrained needs a connection")
    assert list(tmp_path.iterdir()) == []


def test_a_local_file_with_its_classes_is_exported(run: Run, tmp_path: Path) -> None:
    tensors = dict(random_checkpoint(find_model(SMALL[1]), 1).tensors)
    tensors |= {"head.weight": tensors["head.weight"][:7].clone(), "head.bias": tensors["head.bias"][:7].clone()}
    torch.save({"model": tensors}, tmp_path / "tuned.pth")
    code, out, _ = run(*SMALL, "--weights", "tuned.pth", "--out", "out", "--json")
    listed = json.loads(out)
    assert code == 0
    assert listed["classes"] == 7
    assert listed["artifacts"][0]["outputs"] == [
        {"name": "logits", "dtype": "float32", "shape": [1, 7], "pool": "token"}
    ]
    assert (listed["weights"]["source"], listed["weights"]["trained"]) == ("tuned.pth", True)
    assert listed["parity"][0]["passed"] is True
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: path.unlink(), ["no checkpoint at", "existing file"]),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), ["can't be read as a checkpoint"]),
        (lambda path: save_file(dict(random_checkpoint(find_model("swin_tiny"), 0).tensors), path),
         ["does not fit shallow_rope_axial_deit_small_patch16_LS", "try --model swin_tiny"]),
        (lambda path: save_file(with_nan(), path), ["blocks.1.mlp.fc1.weight holds 1 NaN or infinite values"]),
    ],
    ids=["missing", "truncated", "wrong family", "NaN"],
)  # fmt: skip
def test_a_bad_checkpoint_is_one_line(
    run: Run, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], parts: list[str]
) -> None:
    damage(checkpoint)
    code, out, err = run(*SMALL, "--weights", checkpoint, "--out", "out")
    assert (code, out) == (1, "")
    assert_one_line(err, *parts)
    assert not (tmp_path / "out").exists()


def with_nan() -> dict[str, torch.Tensor]:
    tensors = dict(random_checkpoint(find_model(SMALL[1]), 1).tensors)
    tensors["blocks.1.mlp.fc1.weight"][5, 5] = torch.nan
    return tensors


def test_an_existing_bundle_is_left_alone_without_force(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    before = (copy / "manifest.json").stat()
    code, _, err = run(*SMALL, "--weights", "random", "--out", copy)
    assert code == 1
    assert_one_line(err, "copy exists: add --force")
    assert (copy / "manifest.json").stat() == before
    code, _, _ = run(*SMALL, "--weights", "random", "--seed", "3", "--out", copy, "--force")
    assert code == 0
    weights = json.loads((copy / "manifest.json").read_text())["weights"]
    assert (weights["revision"], weights["seed"]) == ("seed 3", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_folder_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = run(*SMALL, "--weights", "random", "--out", "taken/out")
    assert code == 1
    assert_one_line(err, "can't write taken/out")


def subprocess_run(*arguments: str, cwd: Path, limit: int | None = None) -> subprocess.Popen[str]:
    def small_disk() -> None:
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return command_line(*arguments, cwd=cwd, preexec_fn=small_disk)


def test_a_file_that_may_not_grow_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    """A limit on the size of a file, which a disk may have as well."""
    copy = shutil.copytree(bundle, tmp_path / "copy")
    with subprocess_run(
        *SMALL, "--weights", "random", "--out", "copy", "--force", cwd=tmp_path, limit=2**20
    ) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert_one_line(err, "a file of copy would be larger than its filesystem or a limit")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert cli.run(["check", str(copy)]) == 0


def test_a_signal_that_a_library_swallows_ends_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Interrupted, "arrived", False)
    with terminal.progress_bar(2, quiet=True) as progress:
        progress("weights")
        with contextlib.suppress(BaseException):
            interrupt(signal.SIGINT, None)
        with pytest.raises(Interrupted):
            progress("trace")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_run_leaves_nothing(tmp_path: Path, signum: signal.Signals) -> None:
    with subprocess_run(*SMALL, "--weights", "random", "--out", "out", cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out.")]
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert_one_line(err, "interrupted, nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_out_of_tolerance_is_exit_3_with_the_report_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tolerance.TOLERANCES, "fp32", tolerance.Tolerance(relative=1e-12, cosine=1.0))
    code, out, err = run(*SMALL, "--weights", "random", "--out", "out")
    assert (code, out) == (3, "")
    assert_one_line(err, "OUT OF tolerance", "no bundle was written, the report is out.out-of-tolerance.md")
    assert "FAILED" in (tmp_path / "out.out-of-tolerance.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out.out-of-tolerance.md"]


def test_a_bug_of_ours_is_one_line_and_a_traceback_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise LookupError("of ours")

    monkeypatch.setattr(export, "find_model", broken)
    code, _, err = run(*SMALL)
    assert code == 1
    assert_one_line(err, "unexpected LookupError: of ours. Please report it")
    monkeypatch.setenv("ROPEVIT_TRACEBACK", "1")
    with pytest.raises(LookupError):
        run(*SMALL)


def test_check_accepts_a_moved_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "elsewhere")
    code, out, err = run("check", copy)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith(
        "every file as listed, 2 of 2 comparisons within tolerance, 2 of 2 artifacts run here"
    )
    code, out, _ = run("check", copy, "--json")
    assert json.loads(out)["parity"][0]["passed"] is True


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: flip(path / "weights.data"), ["weights.data has SHA-256", "changed or damaged"]),
        (lambda path: (path / "model-32.onnx").unlink(), ["lacks model-32.onnx", "copy the whole folder"]),
        (lambda path: (path / "stray").touch(), ["holds stray", "does not list"]),
        (lambda path: (path / "manifest.json").unlink(), ["is not a bundle: it has no manifest.json"]),
    ],
    ids=["flipped byte", "missing file", "stranger", "no manifest"],
)
def test_check_names_what_is_wrong(
    run: Run, bundle: Path, tmp_path: Path, damage: Callable[[Path], object], parts: list[str]
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    damage(copy)
    code, out, err = run("check", copy)
    assert (code, out) == (1, "")
    assert_one_line(err, *parts)


def test_check_runs_the_graph(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tolerance.TOLERANCES, "fp32", tolerance.Tolerance(relative=1e-12, cosine=1.0))
    code, _, err = run("check", bundle)
    assert code == 3
    assert_one_line(err, "OUT OF tolerance")


def test_one_dynamic_graph_is_checked_at_a_size_that_nobody_named(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--model", "shallow_rope_axial_deit_small", "--res", "32x48,48", "--rope", "dynamic", *SEEDED)
    listed = json.loads(out)
    assert code == 0
    assert listed["rope"] == "dynamic"
    for artifact in listed["artifacts"]:
        assert artifact["dynamic"] == {"max": [48, 48], "multiple": 16, "patch": 16, "prefix": 1}
        assert artifact["resolutions"] == [[32, 48], [48, 48]]
        assert artifact["inputs"][0]["shape"] == [1, 3, "height", "width"]
        own = [each for each in listed["parity"] if each["artifact"] == artifact["path"]]
        assert [(each["resolution"], each["passed"]) for each in own] == [
            ([32, 48], True),
            ([48, 48], True),
            ([16, 32], True),
        ]
    assert run("check", "out")[0] == 0


def test_a_graph_with_position_inputs_says_what_they_are(run: Run, tmp_path: Path) -> None:
    options = ("--res", "32x64", "--rope", "inputs", "--batch", "1:2:4")
    code, out, _ = run("--model", "shallow_rope_mixed_ape_deit_small", *options, *SEEDED)
    listed = json.loads(out)
    artifact, fast = listed["artifacts"]
    assert code == 0
    assert listed["rope"] == "inputs"
    assert (fast["form"], fast["inputs"]) == ("onnxruntime", artifact["inputs"])
    assert artifact["dynamic"] == {"max": [32, 64], "multiple": 16, "patch": 16, "prefix": 1}
    assert [(each["name"], each["dtype"], each["shape"]) for each in artifact["inputs"]] == [
        ("image", "float32", ["batch", 3, "height", "width"]),
        ("cos", "float32", [2, "tokens", 6, 32]),
        ("sin", "float32", [2, "tokens", 6, 32]),
        ("pos_embed", "float32", ["patches", 384]),
    ]
    assert [each["kind"] for each in artifact["files"]] == ["weights", "positions"]
    assert {(tuple(each["resolution"]), each["batch"]) for each in listed["parity"]} == {
        ((32, 64), 1), ((32, 64), 3), ((16, 48), 1), ((16, 48), 3)
    }  # fmt: skip
    assert run("check", "out")[0] == 0

    (tmp_path / "out" / "positions.safetensors").write_bytes(b"")
    assert_one_line(run("check", "out")[2], "positions.safetensors has SHA-256")


@pytest.mark.parametrize("rope", ["dynamic", "inputs"])
def test_a_swin_of_any_size_is_refused_with_the_reason(run: Run, rope: str) -> None:
    code, _, err = run("--model", "swin_tiny", "--res", "224", "--rope", rope)
    assert code == 2
    assert_one_line(err, f"--rope {rope} is for ViTs without windows: those of swin_tiny follow the size")


def test_several_sizes_make_one_bundle(run: Run, tmp_path: Path) -> None:
    options = ("--res", "32,32x64", "--output", "tokens")
    code, out, _ = run("--model", "shallow_swin_rope_mixed_tiny", *options, *SEEDED)
    listed = json.loads(out)
    assert code == 0
    graphs = [each for each in listed["artifacts"] if each["form"] == "portable"]
    assert [each["resolutions"] for each in graphs] == [[[32, 32]], [[32, 64]]]
    assert [each["outputs"][0]["shape"] for each in graphs] == [[1, 1, 768], [1, 2, 768]]
    paths = [each["path"] for each in graphs]
    assert [each["resolution"] for each in listed["parity"] if each["artifact"] in paths] == [[32, 32], [32, 64]]
    drawn = random_checkpoint(find_model("shallow_swin_rope_mixed_tiny"), 0)
    weights = sum(tensor.numel() * 4 for tensor in drawn.tensors.values())
    assert (tmp_path / "out" / "weights.data").stat().st_size < 1.05 * weights


def test_half_precision_takes_raw_pixels(run: Run, tmp_path: Path) -> None:
    options = ("--res", "32", "--precision", "fp16", "--pixels")
    code, out, _ = run("--model", "shallow_swin_rope_mixed_tiny", *options, *SEEDED)
    assert code == 0
    assert json.loads(out)["artifacts"][0]["inputs"][0]["dtype"] == "uint8"
