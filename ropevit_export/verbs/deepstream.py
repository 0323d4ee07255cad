"""`deepstream BUNDLE --out DIR`: a bundle of raw pixels for DeepStream's nvdspreprocess and nvinfer.

nvinfer by itself feeds float32; nvdspreprocess can hand it the bytes that a `--pixels` graph takes, cut from the frame
where the model's transform would cut.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ropevit_export.bundle import manifest
from ropevit_export.errors import BundleError, InputError, UsageError
from ropevit_export.machine.files import link
from ropevit_export.models.spec import Preprocess
from ropevit_export.values import Resolution

# nvinfer's `network-mode`. It has none for bfloat16 and fp8.
_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/gst-plugins/libcustom2d_preprocess.so"
_ENGINE = "tensorrt"


def write(bundle: Path, out: Path, *, frame: Resolution, size: Resolution | None = None, sources: int = 1) -> list[str]:
    """Names of the files in the folder, which appears whole or not at all.

    frame: rows and columns of the videos. size: the bundle's, by default the first. sources: videos in a batch.
    Raises RopevitError for a bundle that takes anything but raw pixels, or whose batch is not that of the sources.
    """
    listed = manifest.read(bundle)
    if listed.preprocess.dtype != "uint8" or listed.rope == "inputs":
        raise UsageError(f"{bundle} takes more than raw pixels: export with --pixels, and --rope baked or dynamic.")
    size = size or Resolution(height=listed.artifacts[0].resolutions[0][0], width=listed.artifacts[0].resolutions[0][1])
    graph, engine = _serving(listed, "onnx", size), _serving(listed, _ENGINE, size)
    if graph is None:
        raise InputError(f"no graph for {size} in {bundle}.")
    if graph.precision not in _MODES:
        raise UsageError(f"nvinfer has no mode for {graph.precision}: export with --precision fp32, fp16 or int8.")
    if not graph.batch.min <= sources <= graph.batch.max:
        raise UsageError(
            f"--sources {sources} make a batch of as many, {graph.path} takes {graph.batch.min} to {graph.batch.max}."
        )
    if out.exists():
        raise BundleError(f"{out} exists: name another --out.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        names = [graph.path, *(each.path for each in graph.files if each.kind == "weights")]
        names += [engine.path] if engine else []
        for name in names:
            link(bundle / name, partial / name)
        texts = {
            "nvdspreprocess.txt": _preprocess(listed, graph, size, frame, sources),
            "nvinfer.txt": _nvinfer(graph, engine, sources),
        }
        for name, text in texts.items():
            (partial / name).write_text(text, "utf-8")
        partial.rename(out)
    except OSError as error:
        raise BundleError(f"can't write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*names, *texts]


def region(preprocess: Preprocess, size: Resolution, frame: Resolution) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a frame that the model's transform makes its picture of (`images.preprocess`)."""
    if preprocess.crop_mode == "squash":
        return 0, 0, frame.width, frame.height
    # A pixel of the resized frame is so many of the frame's.
    scale = min(frame.height / int(size.height / preprocess.crop), frame.width / int(size.width / preprocess.crop))
    width, height = round(size.width * scale), round(size.height * scale)
    return round((frame.width - width) / 2), round((frame.height - height) / 2), width, height


def _serving(listed: manifest.Manifest, kind: str, size: Resolution) -> manifest.ArtifactEntry | None:
    fitting = (each for each in listed.artifacts if each.kind == kind and each.form == "portable")
    return next((each for each in fitting if each.takes(size.height, size.width)), None)


def _preprocess(
    listed: manifest.Manifest, graph: manifest.ArtifactEntry, size: Resolution, frame: Resolution, sources: int
) -> str:
    preprocess = Preprocess(**listed.preprocess.model_dump())
    left, top, width, height = region(preprocess, size, frame)
    every = ";".join(map(str, range(sources)))
    cut = "".join(f"roi-params-src-{source}={left};{top};{width};{height}\n" for source in range(sources))
    return f"""# {listed.model}: {preprocess}, of frames of {frame.width}x{frame.height}
[property]
enable=1
target-unique-ids=1
process-on-frame=1
# 1: NHWC
network-input-order=1
network-input-shape={sources};{size.height};{size.width};3
# 0: RGB
network-color-format=0
# 1: UINT8
tensor-data-type=1
tensor-name={graph.inputs[0].name}
processing-width={size.width}
processing-height={size.height}
maintain-aspect-ratio=0
# 1: bilinear
scaling-filter=1
scaling-buf-pool-size=6
tensor-buf-pool-size=6
custom-lib-path={_LIBRARY}
custom-tensor-preparation-function=CustomTensorPreparation

# The graph normalises by itself.
[user-configs]
pixel-normalization-factor=1

[group-0]
src-ids={every}
process-on-roi=1
{cut}"""


def _nvinfer(graph: manifest.ArtifactEntry, engine: manifest.ArtifactEntry | None, sources: int) -> str:
    outputs = ";".join(each.name for each in graph.outputs)
    made = f"model-engine-file={engine.path}\n" if engine else ""
    return f"""[property]
gpu-id=0
gie-unique-id=1
onnx-file={graph.path}
{made}batch-size={sources}
# 0: FP32, 1: INT8, 2: FP16
network-mode={_MODES[graph.precision]}
# 1: NHWC
network-input-order=1
input-tensor-from-meta=1
# 100: answers as they are, in the tensor meta: nvinfer's own classifier wants probabilities
network-type=100
output-tensor-meta=1
output-blob-names={outputs}
"""
