"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
def staged(final: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `final` to write into; takes its place when the block ends without an error.

    Whatever ends the block early leaves nothing behind, and an older bundle as it was.
    """
    refuse_existing(final, force=force)
    made: list[Path] = []
    staging: Path | None = None
    done = False
    try:
        made = _make_parents(final.parent)
        staging = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
        staging.chmod(0o777 & ~_umask())
        yield staging
        _publish(staging, final, force=force)
        done = True
    except OSError as error:
        raise BundleError(_reason(error, final)) from error
    finally:
        if not done:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _make_parents(parent: Path) -> list[Path]:
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _publish(staging: Path, final: Path, *, force: bool) -> None:
    refuse_existing(final, force=force)  # it may have appeared meanwhile
    if not final.exists():
        staging.rename(final)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".replaced", dir=final.parent))
    try:
        final.rename(old / final.name)
        try:
            staging.rename(final)
        except BaseException:
            (old / final.name).rename(final)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _reason(error: OSError, final: Path) -> str:
    if error.errno in _FULL:
        where = final.parent if final.parent.exists() else Path.cwd()
        free = shutil.disk_usage(where).free / 2**20
        return f"no space left for {final}: {free:.0f} MB free there; free some or choose another --out."
    return f"can't write {final}: {error.strerror or error}."
