"""What can go wrong, and what must then be so: a row a fault. `docs/faults.md` is made from it, and tests walk it.

A test module takes the rows of its title by `rows` and lets each fault happen by its name, `Row.fault`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest

Stands = Literal["nothing", "the older bundle", "the new bundle"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """`code`: the exit code. `says`: a part of the one line on stderr. `stands`: what is at the bundle's place after
    it, with nothing else beside it unless `left` names it. `target`: a part of what `ropevit-verify`, the C++ library,
    says of the same bundle, which it leaves with 1 too; "" where it can't tell, because it does not look into graphs.
    """

    fault: str
    code: int
    says: str
    stands: Stands = "nothing"
    left: str = ""
    target: str = ""
    slow: bool = False


NOTHING: Stands = "nothing"
OLDER: Stands = "the older bundle"
NEW: Stands = "the new bundle"

PUBLISHING = (
    Row(fault="SIGTERM as the folder is about to be exchanged", code=130, stands=NEW, says="out is written and whole"),
    Row(fault="SIGINT as the folder has just been exchanged", code=130, stands=NEW, says="out is written and whole"),
    Row(fault="SIGTERM while the older bundle is removed", code=130, stands=NEW, says="out is written and whole"),
    Row(fault="SIGTERM while files are synced", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGTERM between the two renames where folders can't be exchanged", code=130, stands=NEW,
        says="out is written and whole"),
    Row(fault="SIGINT after the two renames where folders can't be exchanged", code=130, stands=NEW,
        says="out is written and whole"),
    Row(fault="the second of the two renames fails", code=1, stands=OLDER, says="can't write out: Input/output error"),
    Row(fault="SIGTERM while the result is printed", code=130, stands=NEW, says="out is written and whole"),
    Row(fault="stdout is full", code=1, stands=NEW,
        says="can't write the result: No space left on device; out is written and whole"),
    Row(fault="the reader of stdout has left", code=1, stands=NEW, says="nobody reads the result, but out is written"),
    Row(fault="the folder that the bundle is in can't be synced", code=0, stands=NEW,
        says="out is written, but its folder can't be synced: Input/output error"),
    Row(fault="the older bundle can't be removed once it is replaced", code=0, stands=NEW, left=".out.partial",
        says=".out.partial can't be removed: Operation not permitted. Remove it."),
    Row(fault="what a killed run left can't be removed", code=1, stands=OLDER, left=".out.replaced",
        says=".out.replaced, which an earlier run left, can't be removed: Operation not permitted"),
)  # fmt: skip

REPLACING = (
    Row(fault="without --force", code=1, stands=OLDER, says="out exists: add --force to replace it"),
    Row(fault="the older bundle is read-only", code=1, stands=OLDER,
        says="out can't be replaced, it is read-only: `chmod u+rwx` it"),
    Row(fault="the older bundle is immutable", code=1, stands=OLDER,
        says="out can't be replaced, out can't be changed: `chattr -i -a` it"),
    Row(fault="a file of the older bundle is immutable", code=1, stands=OLDER,
        says="out can't be replaced, manifest.json can't be changed"),
    Row(fault="the older bundle is another user's, in a folder with the sticky bit", code=1, stands=OLDER,
        says="out belongs to another user"),
    Row(fault="--out is the present folder", code=1, stands=OLDER, says="is the folder that this was called in"),
    Row(fault="--out is a mount point", code=1, stands=OLDER, says="out is a mount point, which can't be replaced"),
    Row(fault="a file of the older bundle is a mount point", code=1, stands=OLDER,
        says="out can't be replaced, manifest.json in it is a mount point"),
    Row(fault="--out is a folder that is no bundle", code=1, stands=OLDER,
        says="out exists and is not a bundle: it is left alone"),
    Row(fault="--out has a byte that is no UTF-8", code=2, says="is not UTF-8"),
    Row(fault="--out has a name of 256 bytes", code=1, says="File name too long"),
    Row(fault="--out has a name of 255 bytes", code=0, stands=NEW, says=""),
)  # fmt: skip

EDITED = (
    Row(fault="mean", code=1, says="the manifest says preprocess"),
    Row(fault="crop", code=1, says="the manifest says preprocess"),
    Row(fault="interpolation", code=1, says="the manifest says preprocess"),
    Row(fault="layout", code=1, says="the manifest says preprocess", target="preprocess.layout: 'NHWC' is no layout"),
    Row(fault="model", code=1, says="the manifest says model 'rope_mixed_deit_base_patch16_LS'"),
    Row(fault="rope", code=1, says="the manifest says rope 'dynamic'"),
    Row(fault="weights", code=1, says="the manifest says weights_source 'elsewhere'"),
    Row(fault="precision", code=1, says="the manifest says precision 'fp16'"),
    Row(fault="classes", code=1, says="the manifest says classes 11"),
    Row(fault="prefix", code=1, says="the manifest says prefix 5"),
    Row(fault="an input's name", code=1, says="the manifest says inputs ['picture']",
        target="has the inputs image, the manifest lists 1 with picture"),
    Row(fault="an input's shape", code=1, says="the manifest says input image of shape [1, 3, 64, 64]",
        target="has the input image in another format or shape"),
    Row(fault="an output's format", code=1, says="the manifest says output logits of 'float16'",
        target="has the output logits in another format or shape"),
    Row(fault="how an output is pooled", code=1, says="the manifest says outputs"),
    Row(fault="sizes", code=1, says="the manifest says resolutions ((64, 64),)",
        target="the manifest compares model-32.onnx at 32x32, which it says that it does not take"),
    Row(fault="batch", code=1, says="the manifest says batch", target="'s image is not for a batch of 2"),
    Row(fault="tolerance", code=1, says="the manifest says tolerance relative 1000000000.0"),
    Row(fault="a newer schema", code=1, says="schema_version: Input should be 1",
        target="schema_version: it is 2, this library reads 1: take a newer ropevit"),
    Row(fault="std 0", code=1, says="preprocess.std.0: Input should be greater than 0",
        target="preprocess.std.0: a number above 0 is needed"),
    Row(fault="std 1e999", code=1, says="preprocess.std.0: Input should be a finite number",
        target="behind 'std': number overflow"),
    Row(fault="crop 0", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05",
        target="preprocess.crop: a number from 0.05 to 1 is needed"),
    Row(fault="crop -1", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05",
        target="preprocess.crop: a number from 0.05 to 1 is needed"),
    Row(fault="crop 1e-9", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05",
        target="preprocess.crop: a number from 0.05 to 1 is needed"),
    Row(fault="mean NaN", code=1, says="preprocess.mean.0: Input should be a finite number",
        target="behind 'mean': parse error"),
    Row(fault="mean of two numbers", code=1, says="preprocess.mean.2: Field required",
        target="preprocess.mean: a list of 2 was given, needs 3"),
    Row(fault="an interpolation of another kind", code=1, says="preprocess.interpolation: Input should be 'bicubic'",
        target="preprocess.interpolation: 'lanczos' was given, needs bicubic or bilinear"),
    Row(fault="a size of 2^40", code=1, says="artifacts.0.resolutions.0.0: Input should be less than or equal to",
        target="artifacts.0.resolutions.0.0: 1099511627776 was given, needs a whole number from 1 to 65536"),
    Row(fault="a size of 2^16 by 2^16", code=1, says="has more than 268435456 pixels",
        target="artifacts.0.resolutions.0: 65536x65536 has more than 268435456 pixels"),
    Row(fault="a size of half a pixel", code=1, says="artifacts.0.resolutions.0.0: Input should be a valid integer",
        target="artifacts.0.resolutions.0.0: 32.5 was given"),
    Row(fault="a size compared at that is not the graph's", code=1, says="golden-64.safetensors is not a golden file",
        target="the manifest compares model-32.onnx at 64x64, which it says that it does not take"),
    Row(fault="no artifacts", code=1, says="no ONNX graph among the artifacts",
        target="artifacts: a list of 0 was given, needs 1 or more"),
    Row(fault="no comparisons", code=1, says="no parity for model-32.onnx", target="no parity for model-32.onnx"),
    Row(fault="no sizes", code=1, says="artifacts.0.resolutions: Tuple should have at least 1 item",
        target="artifacts.0.resolutions: a list of 0 was given"),
    Row(fault="no inputs", code=1, says="artifacts.0.inputs: Tuple should have at least 1 item",
        target="artifacts.0.inputs: a list of 0 was given"),
    Row(fault="no outputs", code=1, says="artifacts.0.outputs: Tuple should have at least 1 item",
        target="artifacts.0.outputs: a list of 0 was given"),
    Row(fault="an extent of an unknown name", code=1, says="artifacts.0.inputs.0.shape.0",
        target="artifacts.0.inputs.0.shape.0: this library has no axis 'many'"),
    Row(fault="an extent of 2^40", code=1, says="artifacts.0.outputs.0.shape.1",
        target="artifacts.0.outputs.0.shape.1: 1099511627776 was given, needs a whole number from 1 to 2147483647"),
    Row(fault="nine axes", code=1, says="artifacts.0.outputs.0.shape: Tuple should have at most 8 items",
        target="artifacts.0.outputs.0.shape: a list of 9 was given, needs 1 to 8"),
    Row(fault="no axes", code=1, says="artifacts.0.outputs.0.shape: Tuple should have at least 1 item",
        target="artifacts.0.outputs.0.shape: a list of 0 was given"),
    Row(fault="a tensor without a name", code=1, says="artifacts.0.inputs.0.name: String should have at least 1",
        target="artifacts.0.inputs.0.name: it is empty"),
    Row(fault="a number format of another kind", code=1, says="artifacts.0.inputs.0.dtype: Input should be 'float32'",
        target="artifacts.0.inputs.0.dtype: 'float64' is no number format"),
    Row(fault="an output of an unknown name", code=1, says="'answer' is no output of a graph",
        target="has the outputs logits, the manifest lists 1 with answer"),
    Row(fault="a batch out of order", code=1, says="batch 3:1:2 is not in order",
        target="artifacts.0.batch: batch 3:1:2 is not in order"),
    Row(fault="a batch of 2^40", code=1, says="artifacts.0.batch.max: Input should be less than or equal to 2147483647",
        target="artifacts.0.batch.max: 1099511627776 was given"),
    Row(fault="a prefix of 2^40", code=1, says="prefix: Input should be less than or equal to 65536",
        target="prefix: 1099511627776 was given"),
    Row(fault="a tolerance without its cosine", code=1, says="tolerance lacks cosine",
        target="parity.0.tolerance: it has no cosine"),
    Row(fault="a tolerance of NaN", code=1, says="parity.0.tolerance.relative: Input should be a finite number",
        target="behind 'relative': parse error"),
    Row(fault="a path that leads out", code=1, says="artifacts.0.path: String should match pattern",
        target="artifacts.0.path: '../model-32.onnx' is no file name"),
    Row(fault="a path with a zero byte", code=1, says="artifacts.0.path: String should match pattern",
        target="artifacts.0.path: its text holds a control character"),
    Row(fault="a hash of one digit", code=1, says="artifacts.0.sha256: String should match pattern",
        target="artifacts.0.sha256: '0' is not 64 hexadecimal digits"),
    Row(fault="100,000 lists in one another", code=1, says="is not a manifest of schema 1",
        target="its lists and objects lie more than 200 deep in one another"),
    Row(fault="a manifest of 100 MB", code=1, says="it has more than 4 MB", target="it has more than 4 MB"),
    Row(fault="a manifest that is a pipe", code=1, says="it is a pipe, socket or device, needs a file",
        target="manifest.json: it is a pipe, socket or device, needs a file"),
    Row(fault="a manifest that is a folder", code=1, says="manifest.json: Is a directory",
        target="manifest.json: it is a folder, needs a file"),
    Row(fault="a graph that is a pipe", code=1, says="it is a pipe, socket or device, needs a file",
        target="model-32.onnx: it is a pipe, socket or device, needs a file"),
    Row(fault="a graph that is a folder", code=1, says="model-32.onnx: Is a directory",
        target="model-32.onnx: it is a folder, needs a file"),
    Row(fault="a graph that is a link to a device", code=1, says="it is a pipe, socket or device, needs a file",
        target="model-32.onnx: it is a pipe, socket or device, needs a file"),
    Row(fault="weights that are a pipe", code=1, says="weights.data: it is a pipe, socket or device",
        target="weights.data: it is a pipe, socket or device"),
    Row(fault="a graph that says other facts", code=1, says="the manifest says preprocess"),
    Row(fault="a graph with weights from elsewhere", code=1, says="takes weights from '../passwd'",
        target="ONNX Runtime refuses model-32.onnx"),
    Row(fault="a graph of another bundle", code=1, says="the manifest says model 'shallow_rope_mixed_deit_digits'"),
    Row(fault="a graph that is cut off", code=1, says="is no ONNX file", target="ONNX Runtime refuses model-32.onnx"),
    Row(fault="golden answers that are all zero", code=1, says="its answers of logits are all zero",
        target="is not a golden file: its answers of logits are all zero"),
    Row(fault="golden answers that are NaN", code=1, says="its answers of logits hold NaN or infinite values",
        target="is not a golden file: its answers of logits hold NaN or infinite values"),
    Row(fault="golden answers in float16", code=1, says="it has float16 answers of logits",
        target="its answers of logits are not float32 for each of 3 images"),
    Row(fault="golden files without samples", code=1, says="its images are of shape (0, 3, 32, 32)",
        target="golden-32.safetensors is not a safetensors file: expected: it has a shape that is empty"),
    Row(fault="golden files without images", code=1, says="it has no tensor 'image'",
        target="golden-32.safetensors holds no image"),
    Row(fault="golden files of another size", code=1, says="its images are of shape (3, 3, 16, 16)",
        target="its images do not fit model-32.onnx at 32x32"),
    Row(fault="golden files of another format", code=1, says="float16; the graph takes float32",
        target="its images do not fit model-32.onnx at 32x32"),
    Row(fault="golden files of another number of answers", code=1, says="answers of logits for",
        target="its answers of logits are not float32 for each of 3 images"),
    Row(fault="a golden file that is a pipe", code=1, says="it is a pipe, socket or device, needs a file",
        target="golden-32.safetensors: it is a pipe, socket or device, needs a file"),
    Row(fault="a golden file that is cut off", code=1, says="golden-32.safetensors is not a golden file",
        target="golden-32.safetensors is not a safetensors file: expected: it has a shape that is larger"),
    Row(fault="a golden file with more behind it", code=1, says="golden-32.safetensors is not a golden file",
        target="golden-32.safetensors is not a safetensors file: it is longer than its arrays"),
    Row(fault="a golden file whose header would have 2^60 bytes", code=1, says="is not a golden file",
        target="golden-32.safetensors is not a safetensors file: its header would be longer than 100 MB"),
    Row(fault="a golden file of 100,000 lists in one another", code=1, says="is not a golden file",
        target="its lists and objects lie more than 200 deep in one another"),
    Row(fault="a golden file with an extent of 2^60", code=1, says="is not a golden file",
        target="image: it has a shape that is larger than the file"),
    Row(fault="--sha256 of another bundle", code=1, says="it is another bundle, or was changed"),
    Row(fault="--sha256 that is none", code=2, says="is no SHA-256"),
)  # fmt: skip

POSITIONS = (
    Row(fault="tables in float16", code=1, says="cos_x is float16", target="cos_x is F16"),
    Row(fault="tables that hold NaN", code=1, says="cos_x holds NaN or infinite values",
        target="cos_x holds NaN or infinite values"),
    Row(fault="an embedding of infinite values", code=1, says="pos_embed holds NaN or infinite values",
        target="pos_embed holds NaN or infinite values"),
    Row(fault="tables of fewer columns than the graph takes", code=1, says="tables along x are of shapes",
        target="tables along x are of shapes"),
    Row(fault="tables of other heads along one axis", code=1, says="tables along y are of shapes",
        target="tables along y are of shapes"),
    Row(fault="tables without one of four", code=1, says="needs cos and sin of x and y, or an embedding",
        target="needs cos and sin of x and y, or an embedding"),
    Row(fault="tables with one more", code=1, says="it holds cos_x, cos_y, pos_embed, sin_x, sin_y, tan_x",
        target="it holds cos_x, cos_y, pos_embed, sin_x, sin_y, tan_x"),
    Row(fault="no tables", code=1, says="it holds nothing", target="it holds nothing"),
    Row(fault="an embedding of two axes", code=1, says="pos_embed is float32", target="pos_embed is F32"),
    Row(fault="an embedding without rows", code=1, says="pos_embed is float32",
        target="pos_embed: it has a shape that is empty"),
    Row(fault="tables that are a pipe", code=1, says="positions.safetensors: it is a pipe, socket or device",
        target="positions.safetensors: it is a pipe, socket or device"),
    Row(fault="tables that are cut off", code=1, says="is not a file of position tables",
        target="positions.safetensors is not a safetensors file: it ends within its header"),
    Row(fault="a dynamic prefix of 2^40", code=1, says="artifacts.0.dynamic.prefix: Input should be less than",
        target="artifacts.0.dynamic.prefix: 1099511627776 was given, needs a whole number from 0 to 65536"),
    Row(fault="a largest size of 2^40", code=1, says="artifacts.0.dynamic.max.0: Input should be less than",
        target="artifacts.0.dynamic.max.0: 1099511627776 was given, needs a whole number from 1 to 65536"),
    Row(fault="patches of no pixel", code=1, says="artifacts.0.dynamic.patch: Input should be greater than",
        target="artifacts.0.dynamic.patch: 0 was given"),
)  # fmt: skip

IR_ROWS = (
    Row(fault="IR that is cut off", code=1, says="OpenVINO can't read model-32.xml"),
    Row(fault="IR whose weights are cut off", code=1, says="OpenVINO can't read model-32.xml"),
    Row(fault="IR that reads behind its weights", code=1, says="OpenVINO can't read model-32.xml"),
    Row(fault="IR of another bundle", code=3, says="model-32.xml at 32, batch 1, logits"),
    Row(fault="IR with the weights of another bundle", code=3, says="model-32.xml at 32, batch 1, logits"),
    Row(fault="IR that is a pipe", code=1, says="it is a pipe, socket or device, needs a file"),
)  # fmt: skip

PICTURES = (
    Row(fault="a PNG of 30000 by 30000 pixels", code=1, says="odd.png can't be read as an image"),
    Row(fault="a BMP with a flipped bit in its header", code=1, says="odd.bmp can't be read as an image"),
    Row(fault="a JPEG that is cut off", code=1, says="odd.jpg can't be read as an image"),
    Row(fault="a TIFF of noise", code=1, says="odd.tif can't be read as an image"),
    Row(fault="a picture that is a pipe", code=1, says="odd.png can't be read as an image: it is a pipe"),
    Row(fault="a picture without a byte", code=1, says="odd.png can't be read as an image"),
)  # fmt: skip

READERS = (
    Row(fault="a recipe of 100,000 lists in one another", code=2, says="its lists lie too deep in one another"),
    Row(fault="a recipe without an end", code=1, says="it is a pipe, socket or device, needs a file"),
    Row(fault="a recipe with engine = []", code=2, says="engine: an empty list chooses nothing"),
    Row(fault="a workspace of 23 digits", code=2, says="is not in the range 1<=x<=1048576"),
    Row(fault="an index of 100,000 lists in one another", code=1, says="can't be read as an index of shards"),
    Row(fault="a checkpoint that is a pipe", code=1, says="pipe"),
)  # fmt: skip

MACHINE = (
    Row(fault="SIGINT at stage 1: weights", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGTERM at stage 2: reference", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGINT at stage 3: trace", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGTERM at stage 4: passes", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGHUP at stage 5: parity", code=130, stands=OLDER, says="interrupted, nothing was written"),
    Row(fault="SIGTERM at stage 6: parity of the second form", code=130, stands=OLDER,
        says="interrupted, nothing was written"),
    Row(fault="the disk is full", code=1, stands=OLDER, says="no space left for disk/out: 0 MB free there"),
    Row(fault="the disk has no room for more files", code=1, stands=OLDER,
        says="no space left for disk/out: the filesystem has no room for more files (inodes)"),
    Row(fault="the disk is read-only", code=1, stands=OLDER,
        says="can't write disk/out, its disk is mounted read-only"),
    Row(fault="the quota is used up", code=1, stands=OLDER, says="no space left for out: the quota is used up"),
    Row(fault="a file may not get so large", code=1, stands=OLDER,
        says="a file of out would be larger than its filesystem or a limit (`ulimit -f`) allows"),
    Row(fault="the folder vanishes", code=1, says="can't write gone/out: No such file or directory"),
    Row(fault="memory is used up in Python", code=1, stands=OLDER, says="memory is used up, nothing was written"),
    Row(fault="memory is used up in torch", code=1, stands=OLDER, says="memory is used up, nothing was written"),
    Row(fault="memory is used up in a runtime", code=1, stands=OLDER, says="memory is used up, nothing was written"),
    Row(fault="a process may have 1 GB (`ulimit -v`)", code=1, stands=OLDER,
        says="memory is used up, nothing was written"),
    Row(fault="memory is used up as a bundle is written (`ulimit -v`)", code=1, stands=OLDER,
        says="memory is used up, nothing was written"),
    Row(fault="the clock jumps back at every look", code=0, stands=NEW, says=""),
    Row(fault="another process builds the same bundle", code=1, stands=OLDER, left=".out.lock",
        says="out is being built by another process now: wait for it"),
    Row(fault="a runtime that lacks a shared library", code=1, stands=OLDER, says="OpenVINO can't be imported"),
    Row(fault="a runtime that fails while it is imported", code=1, stands=OLDER, says="OpenVINO can't be imported"),
)  # fmt: skip

HUB = (
    Row(fault="the hub is slow", code=0, stands=NEW, says=""),
    Row(fault="the hub stops within the file", code=1, stands=OLDER,
        says="timm/tiny/model.safetensors did not arrive whole, the connection broke"),
    Row(fault="the hub does not answer", code=1, stands=OLDER,
        says="no connection to the hub for timm/tiny/model.safetensors"),
    Row(fault="the connection breaks once, at any tenth of the file", code=0, stands=NEW, says=""),
    Row(fault="the connection breaks each time", code=1, stands=OLDER,
        says="timm/tiny/model.safetensors did not arrive whole, the connection broke"),
    Row(fault="a file with another hash", code=1, stands=OLDER,
        says="damaged on its way and removed from the cache. Run again."),
    Row(fault="a redirect to another host", code=0, stands=NEW, says=""),
    Row(fault="a redirect to another host with another file", code=1, stands=OLDER,
        says="damaged on its way and removed from the cache. Run again."),
    Row(fault="the hub wants a licence to be accepted", code=1, stands=OLDER,
        says="accept its licence on https://huggingface.co/timm/tiny, then run `hf auth login` (or set HF_TOKEN)"),
    Row(fault="the token's account has not accepted the licence", code=1, stands=OLDER,
        says="accept its licence on https://huggingface.co/timm/tiny with that account"),
    Row(fault="the hub has no such file", code=1, stands=OLDER,
        says="the hub has no timm/tiny/model.safetensors: give a local file with --weights PATH."),
    Row(fault="the hub has had too many requests", code=1, stands=OLDER,
        says="the hub answered 429 for timm/tiny/model.safetensors, it has had too many requests"),
    Row(fault="the hub has had too many requests once the file is asked for", code=1, stands=OLDER,
        says="the hub answered 429 for timm/tiny/model.safetensors, it has had too many requests"),
    *(
        Row(fault=f"the hub answers {status}", code=1, stands=OLDER,
            says=f"the hub answered {status} for timm/tiny/model.safetensors, it is in trouble: run again later, or")
        for status in (500, 502, 503, 504)
    ),
)  # fmt: skip

# What a disk says, and the words of ours that stand for it.
WRITE_REASONS = {errno.ENOSPC: "no space left for", errno.EIO: "can't write", errno.EACCES: "can't write"}


class WRITES:
    """Every file and folder that an export makes, writes, syncs, renames or removes, each with each reason."""

    unpublished = Row(
        fault="any write before the bundle is published fails", code=1, stands=OLDER, says="no space left for out: "
    )
    published = Row(
        fault="syncing or removing fails once the new bundle stands", code=0, stands=NEW, says="Remove it.",
        left=".out.partial",
    )  # fmt: skip
    at_least = 36


GROUPS: dict[str, tuple[Row, ...]] = {
    "Publishing a bundle over an older one": PUBLISHING,
    "Refused before the build": REPLACING,
    "check of a bundle from a stranger": EDITED,
    "check of a bundle with position tables from a stranger": POSITIONS,
    "check of a bundle with OpenVINO's IR from a stranger": IR_ROWS,
    "Pictures of --calib and --data": PICTURES,
    "Recipes, options and checkpoints": READERS,
    "Weights from the hub": HUB,
    "The machine": MACHINE,
    "Every write in turn": (WRITES.unpublished, WRITES.published),
}


def rows(group: tuple[Row, ...], wanted: Callable[[str], bool] = lambda fault: True) -> list[object]:
    """Parameters of a test, those whose fault is `wanted`; a row that is `slow` is marked so."""
    return [
        pytest.param(each, id=each.fault, marks=[pytest.mark.slow] if each.slow else [])
        for each in group
        if wanted(each.fault)
    ]
