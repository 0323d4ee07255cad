"""One page for one bundle or several side by side. Manifests' names are not to be trusted: Jinja escapes them."""

from __future__ import annotations

import functools
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ropevit_export.bundle import golden
from ropevit_export.bundle.manifest import ArtifactEntry, HeadEntry, Manifest, OutputEntry, ParityEntry
from ropevit_export.errors import BundleError
from ropevit_export.inspect import kernels
from ropevit_export.models import labels
from ropevit_export.models.spec import Coordinates
from ropevit_export.report import figures
from ropevit_export.rope.tables import along
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from jinja2 import Environment

    from ropevit_export.values import Array, FloatArray

# Of the pictures, patch features and kernels that a bundle has, those that a page shows.
_PICTURES, _FEATURES, _KERNELS = 4, 4, 5
_TOP = 5
# Binary exponents of an error over the reference's rms that every histogram shows: 1e-12 to 16.
_AXIS = (-40, 4)
_HIST_HEIGHT = 20
# Options of the command line by the names that a manifest notes them with, and what goes without saying.
_OPTIONS = {
    "weights_key": "", "rope": "baked", "precision": "fp32", "io_precision": "fp32", "calib": "", "batch": "1",
    "output": "", "pool": "", "seed": "0", "window": "", "engines": "auto", "targets": "",
}  # fmt: skip
_SPELLED = {"targets": "sm", "engines": "engine"}
_FLAGS = ("features_raw", "pixels", "require_fused_attention", "single_file", "skip_unreadable")


@dataclass(frozen=True, slots=True)
class Subject:
    """A bundle to show. `name`: its folder's, which may still be another while it is written. `layers`: what `check
    --by-layer --json` said of its graphs.
    """

    path: Path
    manifest: Manifest
    name: str
    layers: Sequence[Mapping[str, Any]] = ()


def render(subjects: Sequence[Subject], *, bench: Mapping[str, Any] | None = None) -> str:
    """The page. `bench`: what `bench --json` said. Raises BundleError for a bundle without its files."""
    shown = [_bundle(each) for each in subjects]
    template = _environment().get_template("page.html.jinja")
    return template.render(bundles=shown, bench=_latency(bench) if bench else None, axis=_axis())


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True, loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"size": _size, "number": _number, "megabytes": lambda count: f"{count / 1e6:.1f}"}
    return environment


def _bundle(subject: Subject) -> dict[str, Any]:
    listed = subject.manifest
    return {
        "name": subject.name,
        "listed": listed,
        "io_precision": (listed.request or {}).get("io_precision", "fp32"),
        "outputs": [_output(each) for each in listed.artifacts[0].outputs],
        "artifacts": [{"entry": each, "bytes": _bytes(subject.path, each)} for each in listed.artifacts],
        "parity": [_comparison(each) for each in listed.parity],
        "worst": max(listed.parity, key=_share, default=None),
        "not_run": [each.path for each in listed.artifacts if each.path not in {row.artifact for row in listed.parity}],
        "compared": list(dict.fromkeys((each.reference, each.inputs) for each in listed.parity)),
        "plans": [plan for each in listed.artifacts for plan in _plans(subject.path, each)],
        "layers": _by_layer(subject.layers),
        "rotary": _rotary(listed),
        "pictures": _pictures(subject),
        "commands": _commands(listed, subject.name),
    }


def _share(entry: ParityEntry) -> float:
    """Of what the tolerance allows."""
    relative = entry.metrics.get("relative")
    return math.inf if relative is None else relative / entry.tolerance["relative"]


def _bytes(folder: Path, artifact: ArtifactEntry) -> int:
    """With what must lie beside it, but for the builder's own report."""
    names = {artifact.path, *(each.path for each in artifact.files if each.kind != "layers")}
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def _output(entry: OutputEntry) -> str:
    of = {None: "", "token": " of the class token", "avg": " of the mean over patches", "map": " of attention pooling"}
    shape = ", ".join("B" if each == "batch" else str(each) for each in entry.shape)
    return f"{entry.name} ({shape}){of[entry.pool]}{'' if entry.normed is not False else ', not normalised'}"


def _comparison(entry: ParityEntry) -> dict[str, Any]:
    found = entry.histogram
    return {
        "entry": entry,
        "share": _share(entry),
        "path": figures.bars(found.lowest, found.counts, height=_HIST_HEIGHT) if found else None,
        "limit": math.log2(entry.tolerance["relative"]),
    }


def _axis() -> dict[str, Any]:
    """Of every histogram, in binary exponents; a tick every three decades."""
    low, high = _AXIS
    ticks = [{"at": decade * math.log2(10), "text": f"1e{decade}"} for decade in range(-12, 1, 3)]
    return {"low": low, "width": high - low, "height": _HIST_HEIGHT, "ticks": ticks}


def _plans(folder: Path, artifact: ArtifactEntry) -> list[dict[str, Any]]:
    """Of an engine what its builder reports, profile by profile."""
    file = next((each.path for each in artifact.files if each.kind == "layers"), None)
    if file is None:
        return []
    groups = kernels.by_profile(kernels.read(folder / file))
    sizes = artifact.profiles or artifact.resolutions
    return [
        {
            "artifact": artifact.path,
            "size": size if len(groups) == len(sizes) else None,
            "kernels": len(group),
            "types": Counter(each.type for each in group).most_common(),
            "fused": sum(each.is_fused_attention for each in group),
            "traffic": kernels.traffic(group),
            "largest": sorted(
                ((kernels.traffic([each]).total, each) for each in group), key=lambda pair: pair[0], reverse=True
            )[:_KERNELS],
        }
        for group, size in zip(groups, sizes if len(groups) == len(sizes) else [None] * len(groups), strict=True)
    ]


def _by_layer(graphs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each graph's error at every place as a line, 100 wide and 40 high, from 1e-9 to 10."""
    out = []
    for graph in graphs:
        errors = [(each["place"], float(each["error"])) for each in graph["errors"]]
        step = 100 / max(1, len(errors) - 1)
        points = " ".join(
            f"{index * step:.2f},{4 * (1 - math.log10(max(error, 1e-9))):.2f}"
            for index, (_, error) in enumerate(errors)
        )
        jump = graph.get("jump")
        out.append({**graph, "errors": errors, "points": points, "jump": jump["place"] if jump else None})
    return out


def _rotary(listed: Manifest) -> dict[str, Any] | None:
    found = listed.rotary
    if found is None:
        return None
    coordinates = Coordinates(**found.coordinates.model_dump())
    rows, columns = (along(coordinates, extent) for extent in found.grid)
    heads = [
        {
            "title": _head(each),
            "maps": [figures.cosines(x, y, columns, rows) for x, y in zip(each.x, each.y, strict=True)],
        }
        for each in found.heads
    ]
    return {"rule": found.rule, "grid": found.grid, "pairs": found.pairs, "heads": heads}


def _head(entry: HeadEntry) -> str:
    if entry.block is None:
        return "an axial model's head, beside it"
    return f"block {entry.block}, " + ("every head" if entry.head is None else f"head {entry.head}")


def _pictures(subject: Subject) -> dict[str, Any] | None:
    """The golden photographs of the first size, with what the reference says of them."""
    listed = subject.manifest
    artifact = listed.artifacts[0]
    size = Resolution(height=artifact.resolutions[0][0], width=artifact.resolutions[0][1])
    outputs = [each.name for each in artifact.outputs]
    path = subject.path / golden.name(size)
    images, expected = golden.read(path, outputs)
    golden.require_of(path, artifact, size, images, expected)
    photographs = slice(1, 1 + _PICTURES)  # the first is noise
    return {
        "size": artifact.resolutions[0],
        "shown": [figures.photograph(each) for each in _pixels(images[photographs], listed)],
        "top": _top(expected["logits"][photographs], listed) if "logits" in expected else None,
        "maps": [
            (name, figures.principal(found))
            for name in outputs
            if (found := _patches(name, expected[name][photographs], size, listed)) is not None
        ][:_FEATURES],
    }


def _pixels(images: Array, listed: Manifest) -> figures.Pixels:
    """(B, H, W, 3): what a graph takes, as it was before it was normalised."""
    if listed.preprocess.dtype == "uint8":
        return images
    shown = np.moveaxis(images.astype(np.float64), 1, -1) * listed.preprocess.std + listed.preprocess.mean
    return np.clip(shown * 255, 0, 255).round().astype(np.uint8)


def _top(logits: Array, listed: Manifest) -> list[list[tuple[str, float]]]:
    """Of every picture its most probable classes."""
    weights = listed.weights
    names = labels.known(listed.classes, published=weights.trained and weights.revision is not None)
    exponents = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares = exponents / exponents.sum(1, keepdims=True)
    return [
        [(names[index] if names else f"class {index}", float(row[index])) for index in np.argsort(-row)[:_TOP]]
        for row in shares
    ]


def _patches(name: str, answer: Array, size: Resolution, listed: Manifest) -> FloatArray | None:
    """(B, R, C, W) of an output that holds patches, else None."""
    if name.startswith("features_"):
        return np.moveaxis(answer, 1, -1)
    if name != "tokens" or listed.prefix is None:
        return None
    count = answer.shape[1] - listed.prefix
    rows = round(math.sqrt(max(0, count) * size.height / size.width))
    if rows < 1 or count % rows:
        raise BundleError(
            f"the manifest says prefix {listed.prefix}, which leaves {count} of {answer.shape[1]} tokens of {size}: "
            "they are no grid of patches."
        )
    return answer[:, listed.prefix :].reshape(len(answer), rows, count // rows, -1)


def _commands(listed: Manifest, name: str) -> list[str]:
    """To make it again, where the manifest notes how, and to look at it."""
    bundle = shlex.quote(name)
    is_noted = listed.request is not None and {"model", "resolutions", "weights"} <= listed.request.keys()
    made = [_export_command(listed, bundle)] if is_noted else []
    verbs = (
        ("check", "inspect", "bench") if any(each.kind != "onnx" for each in listed.artifacts) else ("check", "bench")
    )
    return made + [f"ropevit-export {verb} {bundle}" for verb in verbs]


def _export_command(listed: Manifest, bundle: str) -> str:
    noted, weights = listed.request or {}, listed.weights
    words = ["ropevit-export", "--model", noted["model"], "--res", noted["resolutions"], "--weights"]
    words.append("random" if weights.source == "random" else noted["weights"])
    if weights.trained and weights.revision and noted["weights"] in ("auto", "pretrained"):
        words += ["--revision", weights.revision]
    for option, usual in _OPTIONS.items():
        if (value := noted.get(option, usual)) != usual:
            words += [f"--{_SPELLED.get(option, option).replace('_', '-')}", value]
    words += [f"--{flag.replace('_', '-')}" for flag in _FLAGS if noted.get(flag) == "True"]
    command = f"{shlex.join(words)} --out {bundle}"
    further = noted.get("engine_options")
    return f"{command}  # engines with {further}" if further else command


def _latency(bench: Mapping[str, Any]) -> dict[str, Any]:
    """Every contender's middle half, p10 to p90 and median, on an axis of 100 from 0 to the slowest p90."""
    rows = []
    for each in bench["timings"]:
        at = [float(value) for value in np.percentile(each["milliseconds"], (10, 25, 50, 75, 90))]
        rows.append({"entry": each, "at": at})
    slowest = max(row["at"][-1] for row in rows)
    rows.sort(key=lambda row: (row["entry"]["batch"], row["at"][2]))
    machine = bench["machine"]
    return {
        "rows": [{**row, "x": [round(100 * value / slowest, 2) for value in row["at"]]} for row in rows],
        "slowest": slowest,
        "rounds": bench["rounds"],
        "size": tuple(bench["resolution"]),
        "machine": f"{machine.get('model_name') or machine.get('processor')}, {machine.get('cores')} cores",
    }


def _size(pair: Sequence[int]) -> str:
    return str(Resolution(height=pair[0], width=pair[1]))


def _number(value: float | int | None, form: str = ".1e") -> str:
    return "NaN" if value is None or math.isnan(value) else format(value, form)
