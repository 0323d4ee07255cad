"""Files that fuzzing made or began from (`tests/fuzz`), read as they are fuzzed: nothing but what a reader may do."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from ropevit_export.errors import BundleError
from tests.fuzz import judge
from tests.fuzz.judge import ROOM, Finding, Reader, judged
from tests.fuzz.readers import READERS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize("name", READERS)
def test_each_file_of_the_corpus_is_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.beside(tmp_path)
    files = sorted((CORPUS / name).iterdir())
    assert files
    refused = {path.name: judged(reader, path.read_bytes(), tmp_path) for path in files}
    # A corpus that nothing is read from fuzzes the first check alone. A checkpoint of a few bytes is no whole model.
    fits = [found for found in refused.values() if not found or "does not fit" in str(found[0])]
    assert fits, refused


def test_many_tensors_are_read_in_a_time_that_grows_as_they_do(tmp_path: Path) -> None:
    """Too large for the corpus: 10,000 names took three seconds, and each doubling four times as long."""
    reader = READERS["safetensors"]
    header = json.dumps({f"a{at}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for at in range(20_000)})
    assert judged(reader, struct.pack("<Q", len(header)) + header.encode(), tmp_path)


def test_every_corpus_has_a_reader() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(READERS)


def raising(error: Exception) -> Reader:
    def read(folder: Path) -> None:
        raise error

    return Reader(file="x", read=(read,), refuses=(BundleError,))


def patient(folder: Path) -> None:
    count = struct.unpack("<Q", (folder / "x").read_bytes())[0]
    sum(range(count))  # a second in some 30 million


def careless(folder: Path) -> None:
    json.loads((folder / "x").read_bytes())


def greedy(folder: Path) -> None:
    count = struct.unpack("<Q", (folder / "x").read_bytes())[0]
    try:
        np.ones(count, np.uint8)
    except MemoryError as error:
        raise BundleError("it is damaged.") from error


@pytest.mark.parametrize(
    ("reader", "content", "finding"),
    [
        (raising(KeyError("x")), b"", KeyError),
        (raising(RecursionError()), b"", RecursionError),
        (Reader(file="x", read=(patient,), refuses=()), struct.pack("<Q", 10**7), Finding),
        (Reader(file="x", read=(greedy,), refuses=(BundleError,)), struct.pack("<Q", 2 * ROOM), Finding),
        (Reader(file="x", read=(careless,), refuses=()), b"{", ValueError),
    ],
)  # fmt: skip
def test_a_bad_reader_is_found(
    reader: Reader, content: bytes, finding: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.05)
    with pytest.raises(finding):
        judged(reader, content, tmp_path)


def test_a_message_that_moves_the_cursor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = raising(BundleError("no file \x1b]0;title\x07\nhere"))
    assert list(map(str, judged(reader, b"", tmp_path))) == ["no file \\x1b]0;title\\x07 here"]
    monkeypatch.delattr("ropevit_export.errors.RopevitError.__str__")
    with pytest.raises(Finding, match="no line that a terminal can be given"):
        judged(reader, b"", tmp_path)


def test_what_is_done_after_a_refusal_is_still_done(tmp_path: Path) -> None:
    reader = raising(BundleError("refused."))
    reader = dataclasses.replace(reader, read=(*reader.read, lambda folder: [][0]))
    with pytest.raises(IndexError):
        judged(reader, b"", tmp_path)
