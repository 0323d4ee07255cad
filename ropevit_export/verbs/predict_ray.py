"""`predict --ray`: the same rows from a Ray cluster, through Ray Data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ropevit_export.backends.select import ON_GPU
from ropevit_export.errors import BackendError
from ropevit_export.runtime import load
from ropevit_export.verbs import predict

if TYPE_CHECKING:
    import pyarrow as pa

# What a worker is given at once: enough that decoding overlaps with the runtime, little enough to keep all busy.
_BATCHES = 8


class Predictor:
    """A bundle on one worker, which keeps it loaded."""

    def __init__(self, asked: predict.Job) -> None:
        self._asked, self._model = asked, load(asked.bundle, asked.backend)

    def __call__(self, rows: pa.Table) -> pa.Table:
        mine = dataclasses.replace(self._asked, pictures=tuple(rows.column("path").to_pylist()))
        summary = predict.Summary(out=mine.bundle, rows=rows.num_rows)
        return predict.joined(list(predict.local(mine, 0, summary, self._model)))


def answers(asked: predict.Job, start: int, summary: predict.Summary) -> Iterator[pa.Table]:
    """Rows from a picture on, in the order of the list, whoever of the workers was first.

    Every node reads bundle and pictures by the same paths. On the cluster of RAY_ADDRESS, else on this machine.
    """
    try:
        import pyarrow as pa
        import ray
    except ImportError as error:
        raise BackendError(f"Ray can't be imported ({error}): pip install 'ropevit-export[ray]'") from error

    if not ray.is_initialized():
        ray.init(os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Workers must find them whatever folder they start in.
    here = dataclasses.replace(asked, bundle=asked.bundle.resolve(), root=asked.root.resolve(), pictures=())
    gpus = 1 if asked.backend in ON_GPU else 0
    workers = max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)) // (1 if gpus else 2))
    rows = ray.data.from_arrow(pa.table({"path": list(asked.pictures[start:])}))
    summary.runtime = f"Ray {ray.__version__}, {workers} workers"
    answered = rows.repartition(target_num_rows_per_block=asked.batch * _BATCHES).map_batches(
        Predictor, fn_constructor_args=(here,), batch_size=asked.batch * _BATCHES, batch_format="pyarrow",
        concurrency=(1, workers), num_cpus=0 if gpus else 1, num_gpus=gpus,
    )  # fmt: skip
    for table in answered.iter_batches(batch_format="pyarrow", batch_size=None):
        yield table.cast(asked.schema())
