"""`predict`: a bundle's answers to every picture of a folder or a list, as a Parquet file.

Pictures are decoded and prepared by threads while the runtime works on those before them. Of a run that was killed the
next one of the same command line goes on (`verbs.parts`).

Legend: B pictures of a batch.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ropevit_export.bundle import manifest
from ropevit_export.errors import InputError, UsageError, with_kind
from ropevit_export.images.files import image_files, reason
from ropevit_export.machine.files import sha256
from ropevit_export.models import labels
from ropevit_export.runtime import Model, load
from ropevit_export.values import Resolution
from ropevit_export.verbs import parts

if TYPE_CHECKING:
    import pyarrow as pa

    from ropevit_export.values import Array, Arrays

LOGITS = "logits"
# Of a dynamic batch the largest that is worth its memory.
_LARGEST_BATCH = 32
# When a part is written: a kill costs no more than what came after the last.
_PART_SECONDS, _PART_ROWS, _PART_BYTES = 10.0, 4096, 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is asked of every picture.

    root, pictures   a folder, and where each picture is in it or by itself: what the column `path` says
    size             that pictures are prepared to; one of the bundle's
    top              how many classes of logits are kept
    names            of the classes; none where they are not known
    shapes           of each output, without the batch
    """

    bundle: Path
    root: Path
    pictures: tuple[str, ...]
    backend: str
    size: Resolution
    top: int
    batch: int
    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]

    def schema(self) -> pa.Schema:
        """`path` and `error`, one of them for every picture, and null or what the graph gives: of logits the most
        probable classes, of any other output all numbers in C order; their shape is the column's metadata.
        """
        import pyarrow as pa

        fields = [pa.field("path", pa.string()), pa.field("error", pa.string())]
        for name, shape in self.shapes.items():
            if name == LOGITS:
                fields += [pa.field("classes", pa.list_(pa.int32())), pa.field("probabilities", pa.list_(pa.float32()))]
                fields += [pa.field("names", pa.list_(pa.string()))] if self.names else []
            else:
                metadata = {"shape": ",".join(map(str, shape))}
                fields.append(pa.field(name, pa.list_(pa.float32()), metadata=metadata))
        return pa.schema(fields)

    def plan(self) -> dict[str, object]:
        """What a file of answers is made of: a run may go on with what another of the same plan has begun."""
        listed = "\n".join(self.pictures)
        return {
            "bundle": self.bundle.resolve().name,
            "manifest": sha256(self.bundle / manifest.MANIFEST),
            "pictures": len(self.pictures),
            "list": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
            "backend": self.backend,
            "size": str(self.size),
            "top": self.top,
            "names": hashlib.sha256("\n".join(self.names).encode()).hexdigest() if self.names else "",
        }


@dataclass(kw_only=True, slots=True)
class Summary:
    """rows: in the file. computed: by this run. bad: of these, pictures that can't be read. seconds: it took, of which
    `answering` in the runtime.
    """

    out: Path
    rows: int
    computed: int = 0
    bad: int = 0
    seconds: float = 0.0
    answering: float = 0.0
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as the graph takes it, or why there is none."""

    path: str
    image: Array | None
    error: str | None


@dataclass(slots=True)
class Answered:
    """Rows until they make a part."""

    tables: list[pa.Table] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        return sum(each.num_rows for each in self.tables)

    def make_a_part(self, rows: int) -> bool:
        long = time.monotonic() - self.since > _PART_SECONDS
        return long or self.rows >= rows or sum(each.nbytes for each in self.tables) > _PART_BYTES


def job(
    bundle: Path,
    data: Path,
    *,
    backend: str = "onnxruntime",
    size: Resolution | None = None,
    top: int = 5,
    batch: int | None = None,
    names: Path | None = None,
) -> Job:
    """What the command line asks for. Raises RopevitError."""
    parts.require_pyarrow()
    model = load(bundle, backend)
    size = size or model.sizes[0]
    graph = model.artifact(size)
    listed = model.manifest
    limits = graph.batch
    chosen = batch or max(limits.min, min(limits.max, _LARGEST_BATCH))
    if not limits.min <= chosen <= limits.max:
        raise UsageError(f"--batch {chosen}: {graph.path} takes {limits.min} to {limits.max} pictures.")
    published = listed.weights.trained and listed.weights.revision is not None
    root, pictures = _pictures(data)
    return Job(
        bundle=bundle,
        root=root,
        pictures=pictures,
        backend=backend,
        size=size,
        top=min(top, listed.classes) if listed.classes else top,
        batch=chosen,
        names=labels.from_file(names, listed.classes) if names else labels.known(listed.classes, published=published),
        shapes={output.name: _shape(output, graph, size) for output in graph.outputs},
    )


def predict(
    asked: Job,
    out: Path,
    *,
    answers: Callable[[Job, int, Summary], Iterator[pa.Table]] | None = None,
    part_rows: int = _PART_ROWS,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Summary:
    """Write the file, or what is left to be written of it. answers: tables of rows from a picture on, in order; by
    default this process computes them. Raises RopevitError; a picture that can't be read is a row with its reason.
    """
    plan, count = asked.plan(), len(asked.pictures)
    with parts.claimed(out):
        if parts.finished(out, plan):
            return Summary(out=out, rows=count)
        written = parts.Parts(out, plan)
        summary, start = Summary(out=out, rows=count), time.monotonic()
        waiting = Answered()
        progress(written.done, count)
        for table in (answers or local)(asked, written.done, summary) if written.done < count else ():
            waiting.tables.append(table)
            summary.computed += table.num_rows
            summary.bad += table.num_rows - table.column("error").null_count
            progress(written.done + waiting.rows, count)
            if waiting.make_a_part(part_rows):
                written.add(joined(waiting.tables))
                waiting = Answered()
        if waiting.tables:
            written.add(joined(waiting.tables))
        written.finish()
        summary.seconds = time.monotonic() - start
        return summary


def local(asked: Job, start: int, summary: Summary, model: Model | None = None) -> Iterator[pa.Table]:
    """Rows from a picture on, a batch a table."""
    model = model or load(asked.bundle, asked.backend)
    summary.runtime = model.describe(asked.size)
    with ThreadPoolExecutor(_threads()) as pool:
        try:
            for prepared in _batches(_ahead(pool, model, asked, start), asked.batch):
                began = time.monotonic()
                answered = answer(model, prepared, asked)
                summary.answering += time.monotonic() - began
                yield table(answered, prepared, asked)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _threads() -> int:
    """Those that decode. The runtime has its own, which wait for them if they are too few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ahead(pool: ThreadPoolExecutor, model: Model, asked: Job, start: int) -> Iterator[Prepared]:
    """Pictures in order, always two batches and a picture a thread in the making."""
    todo = itertools.islice(asked.pictures, start, None)
    made: collections.deque[Future[Prepared]] = collections.deque()
    ahead = 2 * asked.batch + _threads()
    for path in itertools.chain(todo, itertools.repeat(None, ahead)):
        if path is not None:
            made.append(pool.submit(prepare, model, asked.root, path, asked.size))
        if made and (path is None or len(made) > ahead):
            yield made.popleft().result()


def _batches(prepared: Iterable[Prepared], batch: int) -> Iterator[list[Prepared]]:
    """So many that can be read in each, but for the last; those that can't are between them, where they belong."""
    held: list[Prepared] = []
    for each in prepared:
        held.append(each)
        if sum(one.image is not None for one in held) == batch or len(held) >= 4 * batch:
            yield held
            held = []
    if held:
        yield held


def prepare(model: Model, root: Path, path: str, size: Resolution) -> Prepared:
    try:
        return Prepared(path, model.prepare(root / path, size)[0], None)
    except InputError as error:
        return Prepared(path, None, reason(error.__cause__ or error))
    except Exception as error:  # a decoder's own fault over one picture must not end a job of millions
        return Prepared(path, None, with_kind(error))


def answer(model: Model, prepared: Sequence[Prepared], asked: Job) -> Arrays:
    """By output, of those that could be read. The last batch is filled up and cut again."""
    images = [each.image for each in prepared if each.image is not None]
    if not images:
        return {}
    full = np.stack(images)
    found = model.run_all(np.resize(full, (asked.batch, *full.shape[1:])))
    return {name: array[: len(images)] for name, array in found.items()}


def table(answers: Arrays, prepared: Sequence[Prepared], asked: Job) -> pa.Table:
    """A row a picture, of `Job.schema`."""
    import pyarrow as pa

    there = np.array([each.image is not None for each in prepared])
    columns: dict[str, pa.Array] = {
        "path": [_text(each.path) for each in prepared],
        "error": [None if each.error is None else _text(each.error) for each in prepared],
    }
    for name, array in answers.items():
        if name == LOGITS:
            columns |= _classes(array.astype(np.float64), there, asked)
        else:
            columns[name] = _rows(array.reshape(len(array), -1).astype(np.float32), there)
    schema = asked.schema()
    return pa.table(
        [columns.get(name, pa.nulls(len(prepared), schema.field(name).type)) for name in schema.names], schema
    )


def _classes(logits: Array, there: Array, asked: Job) -> dict[str, object]:
    """Largest first; of equal ones the lower class."""
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    shares = exponents / exponents.sum(1, keepdims=True)
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : asked.top].astype(np.int32)
    names = iter([[asked.names[index] for index in row] for row in chosen] if asked.names else [])
    return {
        "classes": _rows(chosen, there),
        "probabilities": _rows(np.take_along_axis(shares, chosen, 1).astype(np.float32), there),
        "names": [next(names, None) if each else None for each in there],
    }


def _rows(values: Array, there: Array) -> pa.Array:
    """(B, numbers) as a list a row, and null where there is no picture."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(there * values.shape[1])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()), mask=pa.array(~there))


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables).combine_chunks()


def _pictures(data: Path) -> tuple[Path, tuple[str, ...]]:
    """The pictures of a folder and the folders in it, or of a text file with a path a line."""
    if data.is_dir():
        found = tuple(path.relative_to(data).as_posix() for path in image_files(data))
        if not found:
            raise InputError(f"{data} holds no pictures.")
        return data, found
    try:
        # Names are bytes: those that are no UTF-8 must be found again.
        lines = data.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise InputError(f"--data {data} is neither a folder nor a list of pictures: {error.strerror}.") from error
    found = tuple(line for line in lines if line.strip())
    if not found:
        raise InputError(f"{data} names no pictures: needs a path a line.")
    return Path(), found


def _text(name: str) -> str:
    """A name that Parquet can hold: bytes that are no UTF-8 as `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _shape(output: manifest.OutputEntry, graph: manifest.ArtifactEntry, size: Resolution) -> tuple[int, ...]:
    """Of one picture's numbers."""
    extents = {}
    if graph.dynamic is not None:
        rows, columns = size.height // graph.dynamic.patch, size.width // graph.dynamic.patch
        extents = {"rows": rows, "columns": columns, "tokens": graph.dynamic.prefix + rows * columns}
    return tuple(each if isinstance(each, int) else extents[each] for each in output.shape[1:])
