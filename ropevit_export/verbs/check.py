"""`check BUNDLE`: is a bundle what its manifest says, and do its artifacts still give the reference's answers here?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropevit_export.backends.select import checkers, forms
from ropevit_export.bundle import facts, golden, manifest
from ropevit_export.errors import BackendError, BundleError, UnreadableError
from ropevit_export.machine.files import sha256
from ropevit_export.parity.compare import ParityReport
from ropevit_export.parity.measure import Sample, measure
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.runtime import artifacts, host_inputs, open_artifact
from ropevit_export.tuned import TUNED
from ropevit_export.values import Dim, IoSpec, Resolution

if TYPE_CHECKING:
    from ropevit_export.backends.base import Runner


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """One artifact on this machine. `reason`: why it could not be run, in one line; empty where it was."""

    artifact: str
    reports: tuple[ParityReport, ...] = ()
    reason: str = ""

    def sentences(self) -> list[str]:
        if self.reason:
            return [f"{self.artifact}: not run here: {self.reason}"]
        return [each.sentence() for each in self.reports]


def check(bundle: Path, backend: str | None = None, *, pinned: str | None = None, **options: Any) -> list[Checked]:
    """Hash every file, compare the manifest with what its graphs carry, then run the artifacts on the golden inputs:
    all that this machine can run, or a backend's, with its options. `pinned`: the manifest's SHA-256, as it was when
    the bundle was made.

    Raises BundleError for a file that is not as listed, for a manifest that is not its graphs', and where the bundle
    holds nothing for the backend; BackendError for an artifact that was loaded and fails to run, and for a graph that
    its runtime does not load.
    """
    if pinned is not None:
        _require_pinned(bundle, pinned)
    listed = manifest.read(bundle)
    _check_files(bundle, listed)
    facts.require_same(bundle, listed, {name: dataclasses.asdict(each) for name, each in TOLERANCES.items()})
    chosen = listed.artifacts if backend is None else _of_backend(bundle, listed, backend)
    return [_checked(bundle, listed, artifact, backend, options) for artifact in chosen]


def _require_pinned(bundle: Path, pinned: str) -> None:
    found = manifest.digest(bundle)
    if found != pinned.lower():
        raise BundleError(
            f"{bundle / manifest.MANIFEST} has SHA-256 {found}, --sha256 pins {pinned}: it is another bundle, or was "
            "changed."
        )


def _check_files(bundle: Path, listed: manifest.Manifest) -> None:
    known = {manifest.MANIFEST, TUNED}
    for name, wanted in dict(listed.all_files()).items():
        path = bundle / name
        known.add(name)
        try:
            found = sha256(path)
        except FileNotFoundError as error:
            raise BundleError(f"{bundle} lacks {name}, which its manifest lists: copy the whole folder.") from error
        except OSError as error:
            raise BundleError(f"can't read {path}: {error.strerror or error}.") from error
        if found != wanted:
            raise BundleError(
                f"{path} has SHA-256 {found[:12]}…, the manifest says {wanted[:12]}…: it was changed or damaged."
            )
    strangers = sorted(path.name for path in bundle.iterdir() if path.name not in known)
    if strangers:
        raise BundleError(f"{bundle} holds {', '.join(strangers)}, which its manifest does not list.")


def _of_backend(bundle: Path, listed: manifest.Manifest, backend: str) -> list[manifest.ArtifactEntry]:
    """Engines or IR of the backend's kind; where it has no kind, or the bundle no IR, the ONNX graphs.

    Of a graph in several forms those for other runtimes are left out.
    """
    own = [each for each in listed.artifacts if each.kind == backend] or artifacts(bundle, listed, backend)
    return [each for each in own if each.form in forms(backend, each.precision)]


def _checked(
    bundle: Path, listed: manifest.Manifest, artifact: manifest.ArtifactEntry, backend: str | None, options: Any
) -> Checked:
    try:
        runners = _runners(bundle, artifact, backend, options)
    except UnreadableError:
        raise
    except BackendError as error:
        return Checked(artifact=artifact.path, reason=" ".join(str(error).split()))
    reports = [
        report
        for runner in runners
        for size in _sizes(listed, artifact)
        for report in replay(bundle, listed, artifact, runner, size)
    ]
    return Checked(artifact=artifact.path, reports=tuple(reports))


def replay(
    bundle: Path, listed: manifest.Manifest, artifact: manifest.ArtifactEntry, runner: Runner, size: Resolution
) -> list[ParityReport]:
    """A loaded artifact on the golden inputs of a size. Raises BundleError where they do not fit it."""
    if artifact.precision not in TOLERANCES:
        raise BundleError(
            f"{artifact.path} is of precision {artifact.precision}, for which there is no tolerance here."
        )
    io, sample = _io(listed, artifact, size), _sample(bundle, artifact, size)
    try:
        return list(measure(runner, artifact.path, io, sample, TOLERANCES[artifact.precision]))
    except ValueError as error:
        raise BundleError(f"the golden files of {bundle} do not fit {artifact.path}: {error}.") from error


def _runners(bundle: Path, artifact: manifest.ArtifactEntry, backend: str | None, options: Any) -> Iterable[Runner]:
    """What an artifact is run on. Raises BackendError where an engine, or what the backend would run, does not load."""
    if backend is None and artifact.kind == "onnx":
        return checkers(bundle / artifact.path, artifact.precision)
    return [open_artifact(bundle, artifact, backend or artifact.kind, **options)]


def _sizes(listed: manifest.Manifest, artifact: manifest.ArtifactEntry) -> list[Resolution]:
    """Those that a graph was compared at, one of any size at more than it names; an engine takes its own only."""
    sizes: Sequence[manifest.Size] = artifact.resolutions
    if artifact.kind == "onnx":
        sizes = [each.resolution for each in listed.parity if each.artifact == artifact.path]
    return [Resolution(height=height, width=width) for height, width in dict.fromkeys(sizes)]


def _io(listed: manifest.Manifest, artifact: manifest.ArtifactEntry, size: Resolution) -> IoSpec:
    return IoSpec(
        resolution=size,
        rope=listed.rope,
        batch=Dim(**artifact.batch.model_dump()),
        outputs=tuple(entry.value() for entry in artifact.outputs),
        pixels=listed.preprocess.dtype == "uint8",
        dtype=artifact.outputs[0].dtype,
    )


def _sample(bundle: Path, artifact: manifest.ArtifactEntry, size: Resolution) -> Sample:
    path = bundle / golden.name(size)
    images, expected = golden.read(path, [output.name for output in artifact.outputs])
    golden.require_of(path, artifact, size, images, expected)
    return Sample(resolution=size, images=images, host=host_inputs(bundle, artifact)(size), expected=expected)
