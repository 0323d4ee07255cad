"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ropevit_export.bundle.lock import locked
from ropevit_export.bundle.manifest import MANIFEST
from ropevit_export.errors import BundleError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def refuse_existing(final: Path, *, force: bool) -> None:
    """Raise BundleError where the folder is taken: a bundle without `force`, anything else always."""
    if final.is_dir() and not final.is_symlink():
        if not any(final.iterdir()):
            return
        if not (final / MANIFEST).is_file():
            raise BundleError(f"{final} exists and is not a bundle: it is left alone, choose another --out.")
        if not force:
            raise BundleError(f"{final} exists: add --force to replace it, or choose another --out.")
    elif os.path.lexists(final):
        raise BundleError(f"{final} exists and is not a folder: choose another --out.")


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
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in made:
            with contextlib.suppress(OSError):  # not empty, or never made
                each.rmdir()


@contextlib.contextmanager
def staged(final: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `final`, which is `claimed`, to write into; takes its place when the block ends without an
    error.

    Whatever ends the block early leaves nothing behind, and an older bundle as it was.
    """
    refuse_existing(final, force=force)
    staging = _beside(final, "partial")
    try:
        try:
            staging.mkdir()
        except FileExistsError as error:  # only where the filesystem has no locks: else it was cleared up
            raise BundleError(
                f"{staging} exists: another process builds {final}, or was killed; then remove it."
            ) from error
        try:
            yield staging
            _publish(staging, final, force=force)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # published, it is no longer there
    except OSError as error:
        raise BundleError(_reason(error, final)) from error


def _beside(final: Path, what: str) -> Path:
    return final.with_name(f".{final.name}.{what}")


def _recover(final: Path) -> None:
    """What a killed builder left: half a bundle, or a whole old one that was just being replaced."""
    shutil.rmtree(_beside(final, "partial"), ignore_errors=True)
    old = _beside(final, "replaced")
    if (final / MANIFEST).is_file():
        shutil.rmtree(old, ignore_errors=True)
    elif old.is_dir():
        old.rename(final)


def _publish(staging: Path, final: Path, *, force: bool) -> None:
    refuse_existing(final, force=force)  # it may have appeared meanwhile
    if not final.exists():
        staging.rename(final)
        return
    old = _beside(final, "replaced")
    final.rename(old)
    try:
        staging.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _reason(error: OSError, final: Path) -> str:
    if error.errno in _FULL:
        where = final.parent if final.parent.exists() else Path.cwd()
        free = shutil.disk_usage(where).free / 2**20
        return f"no space left for {final}: {free:.0f} MB free there; free some or choose another --out."
    return f"can't write {final}: {error.strerror or error}."
