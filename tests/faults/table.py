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
    "Every write in turn": (WRITES.unpublished, WRITES.published),
}


def rows(group: tuple[Row, ...]) -> list[object]:
    """Parameters of a test; a row that is `slow` is marked so."""
    return [pytest.param(each, id=each.fault, marks=[pytest.mark.slow] if each.slow else []) for each in group]
