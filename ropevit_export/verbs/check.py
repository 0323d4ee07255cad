"""`check BUNDLE`: is a bundle what its manifest says, and does its graph still give the reference's answers here?"""

from __future__ import annotations

from pathlib import Path

from ropevit_export.bundle import golden, manifest
from ropevit_export.errors import BundleError
from ropevit_export.machine.files import sha256
from ropevit_export.parity.compare import ParityReport
from ropevit_export.parity.measure import Sample, measure
from ropevit_export.parity.tolerance import TOLERANCES
from ropevit_export.runtime import host_inputs
from ropevit_export.values import Dim, IoSpec, Resolution


def check(bundle: Path) -> list[ParityReport]:
    """Hash every file, then run each ONNX artifact on the golden inputs.

    Raises BundleError for a file that is not as listed.
    """
    listed = manifest.read(bundle)
    _check_files(bundle, listed)
    artifacts = {artifact.path: artifact for artifact in listed.artifacts if artifact.kind == "onnx"}
    wanted = dict.fromkeys((each.artifact, each.resolution) for each in listed.parity if each.artifact in artifacts)
    return [
        each
        for path, (height, width) in wanted
        for each in _run(bundle, listed, artifacts[path], Resolution(height=height, width=width))
    ]


def _check_files(bundle: Path, listed: manifest.Manifest) -> None:
    known = {manifest.MANIFEST}
    for name, wanted in dict(listed.all_files()).items():
        path = bundle / name
        known.add(name)
        if not path.is_file():
            raise BundleError(f"{bundle} lacks {name}, which its manifest lists: copy the whole folder.")
        found = sha256(path)
        if found != wanted:
            raise BundleError(
                f"{path} has SHA-256 {found[:12]}…, the manifest says {wanted[:12]}…: it was changed or damaged."
            )
    strangers = sorted(path.name for path in bundle.iterdir() if path.name not in known)
    if strangers:
        raise BundleError(f"{bundle} holds {', '.join(strangers)}, which its manifest does not list.")


def _run(
    bundle: Path, listed: manifest.Manifest, artifact: manifest.ArtifactEntry, resolution: Resolution
) -> list[ParityReport]:
    from ropevit_export.backends.select import checkers

    if artifact.precision not in TOLERANCES:
        raise BundleError(
            f"{artifact.path} is of precision {artifact.precision}, for which there is no tolerance here."
        )
    images, expected = golden.read(bundle / golden.name(resolution), [output.name for output in artifact.outputs])
    io = IoSpec(
        resolution=resolution,
        rope=listed.rope,
        batch=Dim(**artifact.batch.model_dump()),
        outputs=tuple(entry.value() for entry in artifact.outputs),
        pixels=listed.preprocess.dtype == "uint8",
        dtype=artifact.outputs[0].dtype,
    )
    host = host_inputs(bundle, artifact)(resolution)
    sample = Sample(resolution=resolution, images=images, host=host, expected=expected)
    try:
        return [
            each
            for runner in checkers(bundle / artifact.path, artifact.precision)
            for each in measure(runner, artifact.path, io, sample, TOLERANCES[artifact.precision])
        ]
    except ValueError as error:
        raise BundleError(f"{bundle / golden.name(resolution)} does not fit {artifact.path}: {error}.") from error
