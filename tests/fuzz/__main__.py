"""Let atheris make files for a reader until it finds one that breaks the property, or time is up.

What it finds, and what it keeps to go on from, lies in build/fuzz.
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import atheris
import timm  # noqa: F401 - what is imported here is not instrumented
import torch

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
_KINDS = 2048  # of refusals
_WORDS = 6  # that tell them apart


def main(arguments: list[str]) -> int:
    names = sorted(path.name for path in CORPUS.iterdir())
    if len(arguments) < 2 or arguments[1] not in names:
        sys.exit(f"needs one of {', '.join(names)}")
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ropevit-fuzz-", dir=in_memory) as folder:
        if (child := os.fork()) == 0:
            fuzz(arguments[0], arguments[1], arguments[2:], Path(folder))  # libFuzzer ends the process
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def fuzz(program: str, name: str, options: list[str], folder: Path) -> None:
    del sys.modules["zipfile"]  # torch has imported it as it is
    with atheris.instrument_imports(include=["ropevit_export", "zipfile", "tomllib", "safetensors"]):
        from tests.fuzz.judge import judged
        from tests.fuzz.readers import READERS

    reader = READERS[name]
    reader.beside(folder)
    torch.set_num_threads(1)
    # A reader in Rust or C has no branches that atheris sees, but it says why it refuses: each kind of refusal is one.
    kinds = [atheris.instrument_func(_branch()) for _ in range(_KINDS)]

    def once(content: bytes) -> None:
        for at, refusal in enumerate(judged(reader, content, folder)):
            kinds[zlib.crc32(f"{at} {_kind(refusal)}".encode()) % _KINDS]()

    def mutated(content: bytes, longest: int, seed: int) -> bytes:
        made = reader.mutate(content, random.Random(seed), lambda part: atheris.Mutate(part, len(part) + 64))
        return made if len(made) <= longest else atheris.Mutate(content, longest)

    work = ROOT / "build" / "fuzz"
    (work / name).mkdir(parents=True, exist_ok=True)
    if reader.words:
        (work / f"{name}.dict").write_text("".join(f'"{word}"\n' for word in reader.words))
        options = [f"-dict={work / name}.dict", *options]
    if all(each.startswith("-") for each in options):
        options = [*options, str(work / name), str(CORPUS / name)]
    usual = [f"-max_len={reader.longest}", "-timeout=30", "-rss_limit_mb=3000", f"-artifact_prefix={work}/{name}-"]
    atheris.Setup([program, *usual, *options], once, custom_mutator=mutated)
    atheris.Fuzz()


def _kind(error: BaseException | None) -> str:
    """Where it was raised, and how what it says begins, without what it has from the file; of each that led to it."""
    kinds = []
    while error is not None:
        raised = traceback.extract_tb(error.__traceback__)[-1:]
        said = re.sub(r"(?<=\w)'(?=\w)", "", str(error))  # of words such as can't
        said = re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*|\d+", "", said)
        kinds.append(f"{type(error).__name__} {[each.lineno for each in raised]} {said.split()[:_WORDS]}")
        error = error.__cause__ or error.__context__
    return "; ".join(kinds)


def _branch():  # type: ignore[no-untyped-def]
    def branch() -> None:
        return

    return branch


sys.exit(main(sys.argv))
