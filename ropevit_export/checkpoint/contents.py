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
# Below so many containers, or at a place of so many characters, no checkpoint has weights: that is not looked at.
_DEEPEST, _LONGEST = 100, 500
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
    out, room = Contents(), _Room(nbytes)
    seen: set[int] = set()  # of containers: one that holds itself ends here too
    waiting: deque[tuple[str, int, object]] = deque([("", 0, content)])
    while waiting:
        place, depth, value = waiting.popleft()
        held = _held(value)
        if held is None or id(value) in seen or len(place) > _LONGEST:
            continue
        seen.add(id(value))
        room.take(len(held))
        for key, each in held.items():
            _add(out, place, key, each, room)
        # Averages of torch_ema and diffusers: in the order of a module's parameters, which a file does not say.
        if isinstance(value, (list, tuple)) and (tensors := sum(isinstance(each, torch.Tensor) for each in value)) > 2:
            out.unread[place] = f"a list without names, of {tensors} tensors"
        if depth < _DEEPEST:
            waiting.extend((_inner(place, key), depth + 1, each) for key, each in held.items() if _holds(each))
    if isinstance(content, Inert) and content.is_module:
        out.unread[""] = _made_by(content)
    return out


def _add(out: Contents, place: str, key: object, value: object, room: _Room) -> None:
    """What stands under a key, where it is a tensor or something that could be one."""
    if isinstance(tensor := room.plain(value), torch.Tensor):
        if isinstance(key, str):  # in a list tensors have no names
            out.dictionaries.setdefault(place, {})[key] = tensor
    elif isinstance(value, Inert) and (made_by := _made_by(value)):
        out.unread[_inner(place, key)] = made_by


def _inner(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


class _Room:
    """How much a file of so many bytes may hold. Raises CheckpointError."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes, self._count, self._taken = nbytes, 0, 0
        self._arrays: dict[int, torch.Tensor | None] = {}

    def take(self, count: int) -> None:
        self._count += count
        if self._count > _MOST:
            raise CheckpointError(f"the file holds more than {_MOST} things: no checkpoint does.")

    def plain(self, value: object) -> object:
        """A tensor as it is, an array as one, which the file may name more than once."""
        if isinstance(value, NumpyArray):
            if id(value) not in self._arrays:
                self._arrays[id(value)] = value.tensor()
            value = self._arrays[id(value)]
        if isinstance(value, torch.Tensor):
            self._taken += value.nbytes
            if self._taken > _TIMES * self._nbytes + _FREE:
                raise CheckpointError(
                    f"the file's {self._nbytes} bytes stand for tensors of {self._taken} and more: no checkpoint's do."
                )
        return value


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


def _made_by(value: Inert) -> str:
    return f"a whole pickled module ({value.origin})" if value.is_module else value.origin
