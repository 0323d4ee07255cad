"""What the program does to a terminal, a pipe and a shell."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ropevit_export import cli
from ropevit_export.cli import terminal
from ropevit_export.models import zoo

COLOUR = re.compile(r"\x1b\[[\d;]*[34]\d[\d;]*m")


def use_bars() -> None:
    with terminal.progress_bar(2, quiet=False) as advance:
        advance("first")
    with terminal.counted("pictures", quiet=False) as tell:
        tell(1, 2)


def on_a_terminal(call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a call writes on stderr, if that is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        call()
        stream.flush()
        return os.read(ours, 1 << 16).decode()


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert COLOUR.search(on_a_terminal(use_bars, monkeypatch))
    monkeypatch.setenv("NO_COLOR", "1")
    written = on_a_terminal(use_bars, monkeypatch)
    assert "first" in written
    assert not COLOUR.search(written)


def test_a_pipe_gets_neither_bars_nor_colours(
    bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    use_bars()
    for arguments in (["check", str(bundle)], ["inspect", str(bundle)], ["models"], ["--help"]):
        assert cli.run(arguments) == 0
    out, err = capfd.readouterr()
    assert "comparisons within tolerance" in out
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    assert err == ""


def test_verbose_says_what_each_pass_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "shallow_rope_mixed_deit_digits", "--res", "32", "--weights", "random", "--engine", "none"]
    assert cli.run([*small, "-v", "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^pass Simplify: \d+ → \d+ nodes$", said, re.M)
    assert re.search(r"^pass \w+: (\d+) → \1 nodes, nothing to do$", said, re.M)


def test_verbose_shows_where_an_error_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.run(["check", str(tmp_path), "--verbose"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: ")
    assert cli.run(["doctor", "-q", "-v"]) == 2
    assert "--quiet and --verbose exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("bash") is None and shell == "bash":  # click asks it for its version
        pytest.skip("there is no bash here")
    assert cli.run(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert f"_ROPEVIT_EXPORT_COMPLETE={shell}_complete" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it: apt-get install {shell}")
    read = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--model", "rope_mixed_deit_b"], {"rope_mixed_deit_base", "rope_mixed_deit_base_patch16_LS"}),
        (["--model", "deit_small,swin_rope_axial_t"], {"deit_small,swin_rope_axial_tiny"}),
        (["models", "swin_rope_mixed_tiny_"], {"swin_rope_mixed_tiny_patch4_window7_224"}),
        (["--precision", "f"], {"fp32", "fp16", "fp8"}),
        (["pre"], {"predict"}),
        (["check", "--by"], {"--by-layer"}),
    ],
)
def test_bash_completes(words: list[str], wanted: set[str], tmp_path: Path) -> None:
    """The program, called as the script calls it."""
    program = tmp_path / "ropevit-export"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from ropevit_export.start import main; main()" "$@"\n')
    program.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in ("ropevit-export", *words))
    code = (
        f'eval "$({program} completion bash)"; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; '
        f'_ropevit_export_completion "{program}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert wanted <= set(done.stdout.split())
    assert all(each.startswith(words[-1]) for each in done.stdout.split())


def test_every_name_of_a_model_is_offered() -> None:
    from ropevit_export.cli.options import model_names

    offered = model_names(None, None, "")  # type: ignore[arg-type]  # neither is looked at
    for name in offered:
        zoo.find_model(name)
    assert {spec.name for spec in zoo.MODELS} <= set(offered)
