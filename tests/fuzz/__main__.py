"""Let atheris make files for a reader until it finds one that breaks the property, or time is up.

What it finds, and what it keeps to go on from, lies in build/fuzz.
"""

from __future__ import annotations

import atexit
import random
import re
import shutil
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import atheris
import timm  # noqa: F401 - what is imported here is not instrumented
import torch

ROOT = Path(__file__).parents[2]
_KINDS = 2048  # of refusals
_WORDS = 6  # that tell them apart


def main(arguments: list[str]) -> None:
    with atheris.instrument_imports(include=["ropevit_export", "zipfile", "json", "tomllib", "safetensors"]):
        from tests.fuzz.judge import judged
        from tests.fuzz.readers import READERS

    if len(arguments) < 2 or arguments[1] not in READERS:
        sys.exit(f"needs one of {', '.join(READERS)}")
    name, options = arguments[1], arguments[2:]
    reader = READERS[name]
    in_memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ropevit-fuzz-", dir=in_memory if in_memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
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
        options.insert(0, f"-dict={work / name}.dict")
    if all(each.startswith("-") for each in options):
        options += [str(work / name), str(ROOT / "tests" / "fuzz" / "corpus" / name)]
    usual = [f"-max_len={reader.longest}", "-timeout=30", "-rss_limit_mb=3000", f"-artifact_prefix={work}/{name}-"]
    atheris.Setup([arguments[0], *usual, *options], once, custom_mutator=mutated)
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


main(sys.argv)
