"""From what a file holds, nested as training left it, to the dictionaries of tensors in it, by their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ropevit_export.checkpoint.unpickle import Inert, NumpyArray
from ropevit_export.errors import CheckpointError

# Far more than any training state has: what is larger was made to be.
_MOST = 2_000_000
# Below so many containers no checkpoint has weights: what lies deeper is not looked at.
_DEEPEST = 100
# A tensor may name the same numbers again and again, and a file the same tensor: all of them together may come to so
# many times the file's bytes, and to so much in any.
_TIMES, _FREE = 16, 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """`dictionaries`: tensors by name, by the dictionary's place, such as "state_dict" or "" for the file itself.
    `unread`: what stands where tensors could, by its place: what made it.
    """

    dictionaries: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def contents(content: object, nbytes: int) -> Contents:
    """Of a file of so many bytes. Raises CheckpointError where there are more things, or larger ones, than a checkpoint
    of that size has.
    """
    out = Contents()
    seen: set[int] = set()  # of containers: one that holds itself ends here too
    arrays: dict[int, torch.Tensor | None] = {}
    waiting: deque[tuple[str, int, object]] = deque([("", 0, content)])
    count, taken = 0, 0
    while waiting:
        place, depth, value = waiting.popleft()
        held = _held(value)
        if held is None or id(value) in seen:
            continue
        seen.add(id(value))
        count += len(held)
        if count > _MOST:
            raise CheckpointError(f"the file holds more than {_MOST} things: no checkpoint does.")
        for key, each in held.items():
            inner = f"{place}.{key}" if place else str(key)
            if isinstance(tensor := _plain(each, arrays), torch.Tensor):
                taken += tensor.nbytes
                if taken > _TIMES * nbytes + _FREE:
                    raise CheckpointError(
                        f"the file's {nbytes} bytes stand for tensors of {taken} and more: no checkpoint's do."
                    )
                if isinstance(key, str):  # in a list tensors have no names
                    out.dictionaries.setdefault(place, {})[key] = tensor
            elif isinstance(each, Inert) and (made_by := _made_by(each)):
                out.unread[inner] = made_by
        # Averages of torch_ema and diffusers: in the order of a module's parameters, which a file does not say.
        if isinstance(value, (list, tuple)) and (tensors := sum(isinstance(each, torch.Tensor) for each in value)) > 2:
            out.unread[place] = f"a list without names, of {tensors} tensors"
        if depth < _DEEPEST:
            waiting.extend(
                (f"{place}.{key}" if place else str(key), depth + 1, each) for key, each in held.items() if _holds(each)
            )
    if isinstance(content, Inert) and content.is_module:
        out.unread[""] = _made_by(content)
    return out


def _held(value: object) -> Mapping[Any, Any] | None:
    """What a container holds by key, a list by number; None for what is no container."""
    if isinstance(value, Inert):
        if value.is_module:
            return None
        parts = [part for part in value.args if isinstance(part, (dict, list, tuple))]
        inside = {key: each for part in parts for key, each in (_held(part) or {}).items()}
        return {**inside, **value.attributes, **value.entries}
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, (list, tuple)) else None


def _holds(value: object) -> bool:
    return isinstance(value, (Inert, dict, list, tuple)) and not isinstance(value, NumpyArray)


def _plain(value: object, arrays: dict[int, torch.Tensor | None]) -> object:
    """A tensor as it is, an array as one, which the file may name more than once."""
    if not isinstance(value, NumpyArray):
        return value
    if id(value) not in arrays:
        arrays[id(value)] = value.tensor()
    return arrays[id(value)]


def _made_by(value: Inert) -> str:
    return f"a whole pickled module ({value.origin})" if value.is_module else value.origin
