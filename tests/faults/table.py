"""What can go wrong, and what must then be so: a row a fault. `docs/faults.md` is made from it, and tests walk it.

A test module takes the rows of its title by `rows` and lets each fault happen by its name, `Row.fault`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

import pytest

Stands = Literal["nothing", "the older bundle", "the new bundle"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """`code`: the exit code. `says`: a part of the one line on stderr. `stands`: what is at the bundle's place after
    it, with nothing else beside it unless `left` names it.
    """

    fault: str
    code: int
    says: str
    stands: Stands = "nothing"
    left: str = ""
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
    Row(fault="layout", code=1, says="the manifest says preprocess"),
    Row(fault="model", code=1, says="the manifest says model 'rope_mixed_deit_base_patch16_LS'"),
    Row(fault="rope", code=1, says="the manifest says rope 'dynamic'"),
    Row(fault="weights", code=1, says="the manifest says weights_source 'elsewhere'"),
    Row(fault="precision", code=1, says="the manifest says precision 'fp16'"),
    Row(fault="classes", code=1, says="the manifest says classes 11"),
    Row(fault="prefix", code=1, says="the manifest says prefix 5"),
    Row(fault="an input's name", code=1, says="the manifest says inputs ['picture']"),
    Row(fault="an input's shape", code=1, says="the manifest says input image of shape [1, 3, 64, 64]"),
    Row(fault="an output's format", code=1, says="the manifest says output logits of 'float16'"),
    Row(fault="how an output is pooled", code=1, says="the manifest says outputs"),
    Row(fault="sizes", code=1, says="the manifest says resolutions ((64, 64),)"),
    Row(fault="batch", code=1, says="the manifest says batch"),
    Row(fault="tolerance", code=1, says="the manifest says tolerance relative 1000000000.0"),
    Row(fault="std 0", code=1, says="preprocess.std.0: Input should be greater than 0"),
    Row(fault="crop 0", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05"),
    Row(fault="crop -1", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05"),
    Row(fault="crop 1e-9", code=1, says="preprocess.crop: Input should be greater than or equal to 0.05"),
    Row(fault="mean NaN", code=1, says="preprocess.mean.0: Input should be a finite number"),
    Row(fault="a size of 2^40", code=1, says="artifacts.0.resolutions.0.0: Input should be less than or equal to"),
    Row(fault="a size of 2^16 by 2^16", code=1, says="has more than 268435456 pixels"),
    Row(fault="no sizes", code=1, says="artifacts.0.resolutions: Tuple should have at least 1 item"),
    Row(fault="no inputs", code=1, says="artifacts.0.inputs: Tuple should have at least 1 item"),
    Row(fault="no outputs", code=1, says="artifacts.0.outputs: Tuple should have at least 1 item"),
    Row(fault="an extent of an unknown name", code=1, says="artifacts.0.inputs.0.shape.0"),
    Row(fault="an output of an unknown name", code=1, says="'answer' is no output of a graph"),
    Row(fault="a batch out of order", code=1, says="batch 3:1:2 is not in order"),
    Row(fault="a tolerance without its cosine", code=1, says="tolerance lacks cosine"),
    Row(fault="100,000 lists in one another", code=1, says="is not a manifest of schema 1"),
    Row(fault="a manifest of 100 MB", code=1, says="it has more than 64 MB"),
    Row(fault="a manifest that is a pipe", code=1, says="it is a pipe, socket or device, needs a file"),
    Row(fault="a graph that is a pipe", code=1, says="it is a pipe, socket or device, needs a file"),
    Row(fault="a graph that says other facts", code=1, says="the manifest says preprocess"),
    Row(fault="a graph with weights from elsewhere", code=1, says="takes weights from '../passwd'"),
    Row(fault="a graph of another bundle", code=1, says="the manifest says model 'shallow_rope_mixed_deit_digits'"),
    Row(fault="a graph that is cut off", code=1, says="is no ONNX file"),
    Row(fault="golden answers that are all zero", code=1, says="its answers of logits are all zero"),
    Row(fault="golden answers that are NaN", code=1, says="its answers of logits hold NaN or infinite values"),
    Row(fault="golden files without samples", code=1, says="its images are of shape (0, 3, 32, 32)"),
    Row(fault="golden files of another size", code=1, says="its images are of shape (3, 3, 16, 16)"),
    Row(fault="golden files of another number of answers", code=1, says="answers of logits for"),
    Row(fault="--sha256 of another bundle", code=1, says="it is another bundle, or was changed"),
    Row(fault="--sha256 that is none", code=2, says="is no SHA-256"),
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
    "Pictures of --calib and --data": PICTURES,
    "Recipes, options and checkpoints": READERS,
    "Every write in turn": (WRITES.unpublished, WRITES.published),
}


def rows(group: tuple[Row, ...]) -> list[object]:
    """Parameters of a test; a row that is `slow` is marked so."""
    return [pytest.param(each, id=each.fault, marks=[pytest.mark.slow] if each.slow else []) for each in group]
