"""`cpp-example DIR`: a C++ project of two files that runs a bundle with the installed library."""

from __future__ import annotations

import shutil
from pathlib import Path

from ropevit_export.errors import BundleError

_PROJECT = Path(__file__).with_name("cpp_project")
FILES = tuple(sorted(path.name for path in _PROJECT.iterdir()))


def write(folder: Path) -> list[Path]:
    """Copy the project; raises BundleError where a file of it is there already."""
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise BundleError(f"{folder} holds {', '.join(there)} already: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(_PROJECT / name, folder / name)) for name in FILES]
