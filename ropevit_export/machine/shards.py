"""Which files a checkpoint's path stands for: itself, the shards that an index lists, or what a folder has of these."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from ropevit_export.errors import CheckpointError
from ropevit_export.machine import files
from ropevit_export.machine.files import sha256

# What a folder is searched for, in the order in which transformers takes them.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".th", ".tar", ".pkl")
# What trainers put beside weights under the same suffixes.
_OF_TRAINING = ("optimizer", "scheduler", "scaler", "training_args", "rng_state", "random_states", "sampler")
_DISTRIBUTED = (
    "torch.distributed.checkpoint, in parts a process wrote each: "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth` makes one file of them."
)
_DEEPSPEED = (
    "DeepSpeed: `python zero_to_fp32.py . OUT`, run in the folder that this program is in, makes weights of it."
)
# Files of what is no checkpoint yet, and how it becomes one.
_UNFINISHED = {
    "*.distcp": _DISTRIBUTED,
    ".metadata": _DISTRIBUTED,
    "zero_to_fp32.py": _DEEPSPEED,
    "*_optim_states.pt": _DEEPSPEED,
}
_SHOWN = 6  # names in a message
_SHARD = re.compile(r"-\d+-of-\d+\.\w+$")


def entry(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The file that a path stands for: of a folder, as `save_pretrained` leaves one, its weights or their index; else
    the only file in it that could be weights. And the names of others in the folder that could be.
    """
    if not path.is_dir():
        for mark, sentence in _UNFINISHED.items():
            if path.match(mark):
                raise CheckpointError(f"{path} is a file of {sentence}")
        return path, ()
    found = sorted(each.name for each in path.iterdir() if each.is_file() and _may_be_weights(each.name))
    others = tuple(name for name in found if name not in NAMES and not is_shard(name))
    for name in NAMES:
        if (path / name).is_file():
            return path / name, others
    for mark, sentence in _UNFINISHED.items():
        if any(path.glob(mark)):
            raise CheckpointError(f"{path} is a folder of {sentence}")
    if len(found) == 1:
        return path / found[0], ()
    beside = f", but with {', '.join(found[:_SHOWN])}" if found else ""
    way = "add the index of these shards" if any(map(is_shard, found)) else "give the file itself"
    raise CheckpointError(f"{path} is a folder without {', '.join(NAMES[:-1])} or {NAMES[-1]}{beside}: {way}.")


def is_shard(name: str) -> bool:
    """Whether a file is named as one of several are: model-00001-of-00002.safetensors."""
    return _SHARD.search(name) is not None


def _may_be_weights(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.lower().startswith(_OF_TRAINING)


def is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def weight_map(index: Path) -> dict[str, str]:
    """By a tensor's name the name of the shard that holds it, a file beside the index."""
    try:
        content = json.loads(files.read(index, most=64 * files.MB))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} can't be read as an index of shards, it is no JSON: {error}") from error
    listed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed or not all(_is_file_name(name) for name in listed.values()):
        raise CheckpointError(f"{index} is not an index of shards: needs a weight_map of tensors to files beside it.")
    return listed


def _is_file_name(name: object) -> bool:
    """An index is data from somewhere else: it must not lead out of its folder, and be a name that a file can have."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= files.LONGEST_NAME


def names(index: Path) -> tuple[str, ...]:
    """The shards that an index lists, sorted."""
    return tuple(sorted(set(weight_map(index).values())))


def parts(path: Path) -> tuple[Path, ...]:
    """The files that hold the tensors, sorted by name. Raises CheckpointError where shards are missing."""
    if not is_index(path):
        return (path,)
    found = tuple(path.with_name(name) for name in names(path))
    if missing := [part.name for part in found if not part.is_file()]:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CheckpointError(
            f"{path} lists {len(found)} shards, without {', '.join(missing[:_SHOWN])}{more} beside it: add what is "
            "missing."
        )
    return found


def combined(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for shards, given theirs by name: of what `sha256sum model-*.safetensors` prints, sorted by name."""
    lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def known_by(path: Path) -> str:
    """The SHA-256 that a file, a folder or an index is recorded by."""
    found, _ = entry(path)
    if not is_index(found):
        return sha256(found)
    return combined({part.name: sha256(part) for part in parts(found)})
