"""The plan report of a bundle, or of a bare engine file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError
from ropevit_export.inspect import extents, fusion, graph, kernels, plan_header, roofline
from ropevit_export.inspect.kernels import Kernel, Traffic
from ropevit_export.models.zoo import find_model
from ropevit_export.values import Resolution

# The runtimes whose engines begin with a header that is read here.
_WITH_HEADER = ("tensorrt-rtx", "tensorrt")


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphReport:
    """An ONNX file. `flops`: of its products, by size, at `batch`. `weights`: bytes by number format."""

    path: str
    precision: str
    form: str
    nodes: int
    products: Mapping[str, int]
    weights: Mapping[str, int]
    batch: int
    flops: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelReport:
    """`format`: of what it multiplies, or else writes. `milliseconds`: estimated. `nodes`: ONNX nodes behind it."""

    name: str
    type: str
    format: str
    bytes: int
    flops: int
    milliseconds: float | None
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One inference at one size and batch: the kernels of one profile.

    `not_fused`: blocks whose attention is several kernels, of `attentions`. `types`: kernels by the builder's type,
    `formats` by number format. `traffic`: bytes; `flops`: of matrix products and convolutions, from the ONNX graph.
    `largest`: by estimated time or, without one, by bytes.
    """

    resolution: str
    batch: int
    kernels: int
    attentions: int
    fused_attentions: int
    not_fused: tuple[str, ...]
    types: Mapping[str, int]
    formats: Mapping[str, int]
    traffic: Traffic
    flops: int
    estimate: roofline.Estimate | None
    largest: tuple[KernelReport, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """`obstacles`: why it can't run here, a sentence each; none where it can. `targets`: compute capabilities.

    `runs` is empty for a bare file, whose layer report is not at hand. `remarks`: what figures are without.
    """

    path: str
    runtime: str
    built_with: str
    targets: tuple[str, ...]
    bytes: int
    obstacles: tuple[str, ...]
    runs: tuple[Run, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReport:
    """`sha256`: of a bundle's manifest, which has every other file's; None of a bare file."""

    path: str
    graphs: tuple[GraphReport, ...]
    engines: tuple[EngineReport, ...]
    sha256: str | None = None


Capability = Callable[[], str | None]


def inspect(
    path: Path, *, gpu: str | None = None, largest: int = 5, capability: Capability = plan_header.gpu_capability
) -> PlanReport:
    """Of a bundle's folder or an engine file. `gpu`: whose peak rates to estimate with. Raises RopevitError."""
    wanted = roofline.find_gpu(gpu) if gpu else None
    if path.is_file():
        if wanted:
            raise BundleError(f"{path} is a file: an estimate needs the layer report beside it, name the bundle.")
        return PlanReport(path=str(path), graphs=(), engines=(_bare(path, capability),))
    listed = manifest.read(path)
    onnx = [each for each in listed.artifacts if each.kind == "onnx"]
    engines = [each for each in listed.artifacts if each.kind != "onnx"]
    return PlanReport(
        path=str(path),
        graphs=tuple(_graph(path, listed, each) for each in onnx),
        engines=tuple(_engine(path, listed, each, wanted, largest, capability) for each in engines),
        sha256=manifest.digest(path),
    )


def _bare(path: Path, capability: Capability) -> EngineReport:
    header = plan_header.read(path)
    installed = plan_header.installed_version(header.runtime)
    return EngineReport(
        path=path.name,
        runtime=header.runtime,
        built_with=header.built_with,
        targets=header.targets,
        bytes=path.stat().st_size,
        obstacles=tuple(plan_header.obstacles(header, header.targets, installed, capability())),
    )


def _graph(bundle: Path, listed: manifest.Manifest, artifact: manifest.ArtifactEntry) -> GraphReport:
    sized = {size: _sized(bundle, listed, artifact, size) for size in _sizes(artifact.resolutions)}
    return GraphReport(
        path=artifact.path,
        precision=artifact.precision,
        form=artifact.form,
        nodes=next(iter(sized.values())).nodes,
        products={each.format: each.products for each in artifact.census if each.products},
        weights={each.format: each.bytes for each in artifact.census if each.bytes},
        batch=artifact.batch.opt,
        flops={str(size): sum(each.flops.values()) for size, each in sized.items()},
    )


def _engine(
    bundle: Path,
    listed: manifest.Manifest,
    artifact: manifest.ArtifactEntry,
    gpu: roofline.Gpu | None,
    largest: int,
    capability: Capability,
) -> EngineReport:
    obstacles = _obstacles(bundle / artifact.path, artifact, capability) if artifact.kind in _WITH_HEADER else ()
    found = _kernels(bundle, artifact)
    source = _source(listed, artifact)
    sizes, groups = _sizes(artifact.profiles or artifact.resolutions), kernels.by_profile(found)
    if len(groups) == 1:  # one set of kernels for every size
        groups *= len(sizes)
    if len(groups) != len(sizes):
        raise BundleError(f"{artifact.path} has kernels for {len(groups)} profiles, its manifest names {len(sizes)}.")
    runs = [
        _run(mine, _sized(bundle, listed, source, size), size, artifact.batch.opt, gpu, largest)
        for size, mine in zip(sizes, groups, strict=True)
    ]
    return EngineReport(
        path=artifact.path,
        runtime=artifact.kind,
        built_with=artifact.built_with,
        targets=artifact.targets,
        bytes=(bundle / artifact.path).stat().st_size,
        obstacles=obstacles,
        runs=tuple(runs),
        remarks=tuple(_remarks(found, runs, gpu, artifact)),
    )


def _obstacles(path: Path, artifact: manifest.ArtifactEntry, capability: Capability) -> tuple[str, ...]:
    """Raises BundleError for a file that is not the one of the manifest."""
    header = plan_header.read(path)
    if header.runtime != artifact.kind:
        raise BundleError(
            f"{path} was built by {header.built_with}, its manifest says {artifact.kind}: it is another file."
        )
    if header.targets and set(header.targets) != set(artifact.targets):
        built, said = ", ".join(header.targets), ", ".join(artifact.targets)
        raise BundleError(f"{path} was built for SM {built}, its manifest says {said}: it is another file.")
    installed = plan_header.installed_version(header.runtime)
    return tuple(plan_header.obstacles(header, artifact.targets, installed, capability()))


def _remarks(
    found: Iterable[Kernel], runs: Iterable[Run], gpu: roofline.Gpu | None, artifact: manifest.ArtifactEntry
) -> Iterable[str]:
    if any(tensor.bytes is None for kernel in found for tensor in kernel.tensors):
        yield (
            "the builder leaves extents of a dynamic batch open: they are taken from the ONNX nodes behind each "
            f"kernel, at batch {artifact.batch.opt}"
        )
    if unknown := sum(run.traffic.unknown for run in runs):
        yield f"{unknown} inputs and outputs of kernels stay without a size and are not counted"
    if gpu is not None:
        yield (
            f"times are an estimate: kernels one after the other at the peak rates of {gpu.name} ({gpu.source}), every "
            "byte from memory, no launches, no caches"
        )
        if artifact.targets and gpu.sm not in artifact.targets:
            yield f"{gpu.name} is SM {gpu.sm}, which this engine was not built for: the estimate is of another engine"


def _run(
    found: Sequence[Kernel],
    sized: graph.SizedGraph,
    size: Resolution,
    batch: int,
    gpu: roofline.Gpu | None,
    largest: int,
) -> Run:
    found = extents.sized(found, sized.shapes, batch)
    not_fused = fusion.not_fused(found, sized.attentions, sized.flops.keys())
    flops = _flops(found, sized.flops)
    works = [
        roofline.Work(bytes=kernels.traffic([each]).total, flops=flops[each.name], format=each.multiplied)
        for each in found
    ]
    reports = [_kernel_report(each, work, gpu) for each, work in zip(found, works, strict=True)]
    reports.sort(key=lambda each: (each.milliseconds or 0.0, each.bytes), reverse=True)
    return Run(
        resolution=str(size),
        batch=batch,
        kernels=len(found),
        attentions=len(sized.attentions),
        fused_attentions=len(sized.attentions) - len(not_fused),
        not_fused=not_fused,
        types=dict(Counter(each.type for each in found).most_common()),
        formats=dict(Counter(each.format for each in reports).most_common()),
        traffic=kernels.traffic(found),
        flops=sum(sized.flops.values()),
        estimate=roofline.estimate(works, gpu) if gpu else None,
        largest=tuple(reports[:largest]),
    )


def _kernel_report(kernel: Kernel, work: roofline.Work, gpu: roofline.Gpu | None) -> KernelReport:
    return KernelReport(
        name=kernel.name,
        type=kernel.type,
        format=work.format if work.flops else kernel.written,
        bytes=work.bytes,
        flops=work.flops,
        milliseconds=max(roofline.seconds(work, gpu)) * 1e3 if gpu else None,
        nodes=kernel.nodes,
    )


def _flops(found: Iterable[Kernel], products: Mapping[str, int]) -> Counter[str]:
    """FLOPs by kernel. A product is its kernel's that multiplies; where several stand for it (one pads, one adds the
    bias) and none or more than one does, the first's.
    """
    owner: dict[str, Kernel] = {}
    for kernel in found:
        for node in products.keys() & set(kernel.nodes):
            if node not in owner or (kernel.multiplies and not owner[node].multiplies):
                owner[node] = kernel
    flops: Counter[str] = Counter()
    for node, kernel in owner.items():
        flops[kernel.name] += products[node]
    return flops


def _kernels(bundle: Path, artifact: manifest.ArtifactEntry) -> tuple[Kernel, ...]:
    for each in artifact.files:
        if each.kind == "layers":
            return kernels.read(bundle / each.path)
    raise BundleError(f"{bundle / artifact.path} has no layer report in its bundle.")


def _source(listed: manifest.Manifest, engine: manifest.ArtifactEntry) -> manifest.ArtifactEntry:
    """The graph that an engine was built from."""
    for each in listed.artifacts:
        if (each.kind, each.form, each.resolutions) == ("onnx", engine.form, engine.resolutions):
            return each
    raise BundleError(f"{engine.path} was built from a graph that is not in its bundle.")


def _sized(
    bundle: Path, listed: manifest.Manifest, artifact: manifest.ArtifactEntry, size: Resolution
) -> graph.SizedGraph:
    """At the usual batch."""
    measured = {**find_model(listed.model).extents(size), "batch": artifact.batch.opt}
    shapes = {
        each.name: tuple(extent if isinstance(extent, int) else measured[extent] for extent in each.shape)
        for each in artifact.inputs
    }
    return graph.read(bundle / artifact.path, shapes)


def _sizes(pairs: Iterable[tuple[int, int]]) -> list[Resolution]:
    return [Resolution(height=height, width=width) for height, width in pairs]
