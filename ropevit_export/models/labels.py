"""Names of classes, where they are known. Nothing heavy is imported: timm's files are read where it is installed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from ropevit_export.errors import InputError

IMAGENET_CLASSES = 1000


def from_file(path: Path, classes: int) -> tuple[str, ...]:
    """A name a line, in the order of the classes. Raises InputError for another number of lines."""
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as names of classes: {error}.") from error
    if len(names) != classes:
        raise InputError(f"{path} has {len(names)} lines, the model {classes} classes: needs a name a line.")
    return names


def known(classes: int, *, published: bool) -> tuple[str, ...]:
    """ImageNet-1k's, of published weights with 1000 classes; none where the classes may be others."""
    return imagenet() if published and classes == IMAGENET_CLASSES else ()


@functools.cache
def imagenet() -> tuple[str, ...]:
    """In the order of its 1000 classes, as timm's data files name them; none where timm is not installed."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(found.submodule_search_locations[0]) / "data" / "_info"
    try:
        synsets = (folder / "imagenet_synsets.txt").read_text("utf-8").split()
        lemmas = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
    except OSError:  # another release of timm
        return ()
    by_synset = dict(line.split("\t", 1) for line in lemmas)
    names = tuple(by_synset.get(synset, "").split(",")[0] for synset in synsets)
    return names if len(names) == IMAGENET_CLASSES and all(names) else ()
