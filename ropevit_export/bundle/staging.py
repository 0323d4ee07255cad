"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ropevit_export.bundle.lock import locked
from ropevit_export.bundle.manifest import MANIFEST
from ropevit_export.errors import BundleError, UsageError
from ropevit_export.machine import files
from ropevit_export.machine.process import Interrupted, deferred

log = logging.getLogger("ropevit_export")

_RESERVE = 1 << 20  # bytes


def refuse_existing(final: Path, *, force: bool) -> None:
    """Raise BundleError where the folder is taken: a bundle without `force`, anything else always; and where it is free
    or may be replaced but can't be. UsageError for a name that libraries can't be given.
    """
    try:
        str(final).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"--out {str(final)!r} is not UTF-8, which the runtimes that check a bundle need: choose another."
        ) from None
    try:
        _refuse_existing(final, force=force)
    except OSError as error:
        raise BundleError(_reason(error, final)) from error


def _refuse_existing(final: Path, *, force: bool) -> None:
    if final.is_dir() and not final.is_symlink():
        if any(final.iterdir()):
            if not (final / MANIFEST).is_file():
                raise BundleError(f"{final} exists and is not a bundle: it is left alone, choose another --out.")
            if not force:
                raise BundleError(f"{final} exists: add --force to replace it, or choose another --out.")
        _refuse_irreplaceable(final)
    elif os.path.lexists(final):
        raise BundleError(f"{final} exists and is not a folder: choose another --out.")


def _refuse_irreplaceable(final: Path) -> None:
    """A folder that a new one can't take the place of, before minutes of work."""
    if mounted := files.mount_points(final):
        if final.resolve() in mounted:
            raise BundleError(f"{final} is a mount point, which can't be replaced: choose a folder in it as --out.")
        raise BundleError(f"{final} can't be replaced, {mounted[0].name} in it is a mount point: choose another --out.")
    here = _present_folder()
    if here is not None and here.is_relative_to(final.resolve()):
        raise BundleError(
            f"{final} is the folder that this was called in, which would be replaced under your shell: choose another "
            "--out, or call it from elsewhere."
        )
    fixed = [each.name for each in (final, *final.iterdir()) if files.is_fixed(each)]
    if fixed:
        raise BundleError(
            f"{final} can't be replaced, {', '.join(fixed[:3])} can't be changed: `chattr -i -a` it, or choose another "
            "--out."
        )
    if hasattr(os, "statvfs") and os.statvfs(final).f_flag & os.ST_RDONLY:
        raise BundleError(f"can't write {final}, its disk is mounted read-only: choose another --out.")
    if not os.access(final, os.R_OK | os.W_OK | os.X_OK):
        raise BundleError(f"{final} can't be replaced, it is read-only: `chmod u+rwx` it, or choose another --out.")
    if _is_kept_from_us(final):
        raise BundleError(
            f"{final} belongs to another user, in a folder whose names only their owners may change: choose another "
            "--out."
        )


def _present_folder() -> Path | None:
    try:
        return Path.cwd().resolve()
    except OSError:  # it was removed
        return None


def _is_kept_from_us(final: Path) -> bool:
    """The sticky bit, as /tmp has it."""
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return False
    parent = final.parent.stat()
    return bool(parent.st_mode & stat.S_ISVTX) and os.geteuid() not in (parent.st_uid, final.stat().st_uid)


@contextlib.contextmanager
def claimed(final: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Be the only one who builds `final`, and clear up after a builder that was killed before it could do so itself.

    Where another process builds it now: BundleError or, with `waiting`, which is called over and over, patience.
    """
    try:
        with parents(final.parent), locked(_beside(final, "lock"), waiting=waiting) as held:
            if held:
                _recover(final)
            yield
    except BlockingIOError as error:
        message = f"{final} is being built by another process now: wait for it, or choose another --out."
        raise BundleError(message) from error
    except OSError as error:
        raise BundleError(_reason(error, final)) from error


@contextlib.contextmanager
def parents(folder: Path) -> Iterator[None]:
    """A folder, with those that it is in; what had to be made of them and stays empty is removed again."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(made):
            with contextlib.suppress(FileExistsError):  # another process makes them too
                files.make_folder(each)
        folder.mkdir(exist_ok=True)  # it is one, or an error
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # not empty, or never made
                each.rmdir()


@contextlib.contextmanager
def staged(final: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `final`, which is `claimed`, to write into; takes its place when the block ends without an
    error, with the mode and the group of a folder that was there.

    Whatever ends the block early leaves nothing behind, and an older bundle as it was. What would interrupt the
    program in the moment of publishing does so behind it, and `Interrupted.written` then says that the bundle stands.
    """
    refuse_existing(final, force=force)
    staging = _beside(final, "partial")
    reserve = mmap.mmap(-1, _RESERVE)  # reading a folder takes memory, of which there may be none left in the end
    try:
        try:
            files.make_folder(staging)
        except FileExistsError as error:  # only where the filesystem has no locks: else it was cleared up
            raise BundleError(
                f"{staging} exists: another process builds {final}, or was killed; then remove it."
            ) from error
        try:
            if final.exists():
                _take_after(staging, final)
            yield staging
            for each in (*sorted(staging.iterdir()), staging):
                files.sync(each)
            with deferred():
                refuse_existing(final, force=force)  # it may have appeared meanwhile
                _publish(staging, final)
                Interrupted.written = str(final)
                _make_durable(final)
        except OSError as error:  # what is free is asked before half a bundle is removed
            raise BundleError(_reason(error, final)) from error
        finally:
            reserve.close()
            with deferred():
                _clear(staging)  # half a bundle, or the one that was replaced
    except OSError as error:
        raise BundleError(_reason(error, final)) from error


def _beside(final: Path, what: str) -> Path:
    """A hidden name in the same folder, from which the next builder of `final` knows what a killed one left."""
    name = f".{final.name}.{what}"
    if len(os.fsencode(name)) > files.LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(final.name)).hexdigest()}.{what}"
    return final.with_name(name)


def _take_after(staging: Path, final: Path) -> None:
    """Mode, access lists and group; the owner too, where we may give folders away."""
    if hasattr(os, "chown"):
        theirs, ours = final.stat(), staging.stat()
        owner = theirs.st_uid if os.geteuid() == 0 else -1
        try:
            if theirs.st_gid != ours.st_gid or owner not in (-1, ours.st_uid):
                os.chown(staging, owner, theirs.st_gid)
        except PermissionError as error:
            raise BundleError(
                f"{final} belongs to group {theirs.st_gid}, which you are not in, so that a new folder can't have it: "
                "choose another --out."
            ) from error
    shutil.copystat(final, staging)


def _recover(final: Path) -> None:
    """What a killed builder left: half a bundle, or a whole old one that was just being replaced.

    Raises BundleError for what can't be removed: this build would end in it.
    """
    partial, old = _beside(final, "partial"), _beside(final, "replaced")
    if not (final / MANIFEST).is_file() and old.is_dir():
        files.rename(old, final)
    for each in (partial, old):
        try:
            files.remove_folder(each)
        except OSError as error:
            raise BundleError(
                f"{each}, which an earlier run left, can't be removed: {error.strerror or error}. Remove it."
            ) from error


def _publish(staging: Path, final: Path) -> None:
    """In one step; where the filesystem can't, in two renames, between which a kill leaves what `_recover` mends."""
    if not final.exists():
        files.rename(staging, final)
        return
    try:
        files.exchange(staging, final)
    except OSError as error:
        if not files.is_unsupported(error):
            raise
        old = _beside(final, "replaced")
        files.rename(final, old)
        try:
            files.rename(staging, final)
        except BaseException:
            files.rename(old, final)
            raise
        Interrupted.written = str(final)
        _clear(old)


def _make_durable(final: Path) -> None:
    """The new name too, so that a power cut does not take it back. The bundle stands, whatever the disk says now."""
    try:
        files.sync(final.parent)
    except OSError as error:
        log.warning("%s is written, but its folder can't be synced: %s", final, error.strerror or error)


def _clear(folder: Path) -> None:
    """What can't be removed is named: the next build of this bundle will ask for it."""
    try:
        files.remove_folder(folder)
    except OSError as error:
        log.warning("%s can't be removed: %s. Remove it.", folder, error.strerror or error)


def _reason(error: OSError, final: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {final}: {_free(error, final)}; free some or choose another --out."
    if error.errno == errno.EFBIG:
        return (
            f"a file of {final} would be larger than its filesystem or a limit (`ulimit -f`) allows: raise it, or "
            "choose another --out."
        )
    if error.errno == errno.EXDEV:
        return f"can't replace {final}, it is of a lower layer of an overlay: remove it, or choose another --out."
    return f"can't write {final}: {error.strerror or error}."


def _free(error: OSError, final: Path) -> str:
    """What there is not enough of."""
    if error.errno == errno.EDQUOT:
        return "the quota is used up"
    where = next((each for each in final.parents if each.exists()), final)
    try:
        if hasattr(os, "statvfs"):
            found = os.statvfs(where)
            if found.f_files and not found.f_favail:
                return "the filesystem has no room for more files (inodes)"
        return f"{shutil.disk_usage(where).free / files.MB:.0f} MB free there"
    except OSError:  # the folder is gone
        return f"{where} can't be asked how much is free"
