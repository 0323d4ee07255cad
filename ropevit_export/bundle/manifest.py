"""`manifest.json`: what a bundle holds and where it came from. Read by deployment programs, so every field is typed and
an unknown or missing one is an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ropevit_export.errors import BundleError

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsEntry(_Strict):
    """`source`: a hub repository and file, a file's name, or "random". `trained` false: never classify with it."""

    source: str
    revision: str | None
    sha256: str = Sha256
    trained: bool


class PreprocessEntry(_Strict):
    """What a host does to an RGB image before the graph. `dtype` uint8: the graph normalises by itself.

    Resize the short side to int(size / crop), `interpolation` with antialiasing, crop the centre; then
    (pixel / 255 - mean) / std.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic"]
    crop: float
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "uint8"]


class TensorEntry(_Strict):
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class BatchEntry(_Strict):
    min: int
    opt: int
    max: int


class DynamicEntry(_Strict):
    """A graph that takes any height and width up to `max` that are multiples of `multiple`."""

    max: tuple[int, int]
    multiple: int


class FileEntry(_Strict):
    """A file that serves an artifact or a reader: golden tensors, a layer report, weights beside a graph."""

    kind: str
    path: str
    sha256: str = Sha256


class ArtifactEntry(_Strict):
    """`targets`: compute capabilities an engine runs on. `files`: what must lie beside it.

    `profiles`: an engine's optimization profiles by index, each for one of `resolutions`; empty for a static engine.
    """

    kind: Literal["onnx", "tensorrt", "tensorrt-rtx", "openvino"]
    path: str
    sha256: str = Sha256
    resolutions: tuple[tuple[int, int], ...]
    batch: BatchEntry
    precision: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    built_with: str
    targets: tuple[str, ...]
    files: tuple[FileEntry, ...] = ()
    dynamic: DynamicEntry | None = None
    profiles: tuple[tuple[int, int], ...] = ()


class ParityEntry(_Strict):
    """`metrics` and `tolerance` by name; `passed` follows from them."""

    artifact: str
    resolution: tuple[int, int]
    batches: tuple[int, ...]
    inputs: str
    reference: str
    runtime: str
    metrics: dict[str, float | int | None]
    tolerance: dict[str, float]
    passed: bool


class Manifest(_Strict):
    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    rope: Literal["baked", "dynamic"]
    output: Literal["logits", "cls", "tokens"]
    classes: int
    weights: WeightsEntry
    preprocess: PreprocessEntry
    artifacts: tuple[ArtifactEntry, ...]
    parity: tuple[ParityEntry, ...]
    files: tuple[FileEntry, ...]
    versions: dict[str, str]

    def write(self, bundle: Path) -> None:
        (bundle / MANIFEST).write_text(self.model_dump_json(indent=2) + "\n")

    def all_files(self) -> list[tuple[str, str]]:
        """(path, SHA-256) of every file of the bundle but this one."""
        entries: list[ArtifactEntry | FileEntry] = [
            *self.artifacts,
            *(each for artifact in self.artifacts for each in artifact.files),
            *self.files,
        ]
        return [(entry.path, entry.sha256) for entry in entries]


def read(bundle: Path) -> Manifest:
    """The validated manifest of a bundle; raises BundleError that names the first wrong field."""
    path = bundle / MANIFEST
    if not path.is_file():
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}.")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(f"{path} is not a manifest of schema {SCHEMA_VERSION}: {where}: {first['msg']}.") from error


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
