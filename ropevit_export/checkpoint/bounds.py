"""A pickle, looked through before it is run: whether a number in it decides how much memory is taken, or a few bytes
stand for endless work.

Pickle's machine makes a table as long as the largest number that a thing is kept under, and room for as many bytes as a
string is said to have. It keeps things by number, so a tuple may hold another twice, that one a third twice: thirty of
them are a billion things to whoever walks them, as the hash of a key does. Such files are a few hundred bytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from typing import IO, NamedTuple

# What calls and keys are made of may come to so many times the pickle's bytes, and to so much in any: those of a
# checkpoint with an optimizer's state come to 2 times. A pickler goes down by calling itself, and no deeper than that.
_TIMES, _FREE, _DEEPEST = 8, 1 << 16, 1000


class _Thing:
    """On the machine's stack. size: of all that it holds, as often as it holds it. depth: how deep that lies.

    What holds a list does not learn that it has grown since, which only `is_held` things made to be large do, or such
    with a way back to what holds them. So their growing counts as a call. Lists that hold each other and were filled
    from the outermost in still count as small: what is called here walks no list further than its own elements.
    """

    __slots__ = ("depth", "is_held", "size")

    def __init__(self, size: int, held: Sequence[_Thing] = ()) -> None:
        self.size, self.depth, self.is_held = size, 0, False
        self.hold(held)

    def hold(self, held: Sequence[_Thing]) -> None:
        for each in held:
            each.is_held = True
            self.size = min(self.size + each.size, 1 << 62)
            self.depth = max(self.depth, each.depth + 1)


_MARK = _Thing(0)


class _Opcode(NamedTuple):
    """takes: things off the stack, or where `marked` all above a mark. gives: things onto it. holds: it puts what it
    takes into the thing below that. hashed: 1 where a call or a hash may walk all that it takes, 2 for every second.
    """

    name: str
    argument: int | None
    takes: int
    marked: bool
    gives: int
    holds: bool
    hashed: int


_TWO_LINES = -9
# Of an argument whose length stands before it: the bytes of the length.
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_HOLD = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_HASHED = dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BINPERSID", "FROZENSET", "ADDITEMS"), 1)
_HASHED |= dict.fromkeys(("SETITEM", "SETITEMS", "DICT"), 2)  # of pairs the keys


def _opcode(found: pickletools.OpcodeInfo) -> _Opcode:
    marked = any(each.name == "mark" for each in found.stack_before)
    holds = found.name in _HOLD
    return _Opcode(
        name=found.name,
        argument=_TWO_LINES if found.name in ("GLOBAL", "INST") else None if found.arg is None else found.arg.n,
        takes=0 if marked else len(found.stack_before) - holds,
        marked=marked,
        gives=len(found.stack_after) - holds,
        holds=holds,
        hashed=_HASHED.get(found.name, 0),
    )


_OPCODES = {each.code.encode("latin-1"): _opcode(each) for each in pickletools.opcodes}


def require_bounded(stream: IO[bytes]) -> None:
    """Raises pickle.UnpicklingError; the stream is left where it was. What ends pickle's machine is left to it."""
    begin = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(begin)
    try:
        _Walk(stream, begin, end).walk()
    except (EOFError, IndexError, KeyError, ValueError):  # the machine ends at the same opcode, and says why
        pass
    finally:
        stream.seek(begin)


class _Walk:
    def __init__(self, stream: IO[bytes], begin: int, end: int) -> None:
        self.stream, self.end = stream, end
        self.room = _FREE + _TIMES * (end - begin)
        self.stack: list[_Thing] = []
        self.memo: dict[int, _Thing] = {}
        self.count = 0

    def walk(self) -> None:
        """Raises EOFError, IndexError, KeyError or ValueError where the opcodes are none."""
        while (code := self.stream.read(1)) != b".":
            self.count += 1
            self._step(_OPCODES[code])

    def _step(self, opcode: _Opcode) -> None:
        number, size = self._argument(opcode)
        name = opcode.name
        if name in _PUTS:
            self._keep(len(self.memo) if name == "MEMOIZE" else number)
        elif name in _GETS:
            self.stack.append(self.memo[number])
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "FRAME":
            self._require_there(number)
        else:
            self._make(opcode, size)

    def _make(self, opcode: _Opcode, size: int) -> None:
        taken = self._taken(opcode)
        walked = taken[:: opcode.hashed] if opcode.hashed else []
        self._charge(taken if opcode.holds and self.stack[-1].is_held else walked)
        if any(each.depth > _DEEPEST for each in walked):
            raise pickle.UnpicklingError(f"its calls and keys are of things more than {_DEEPEST} deep in one another")
        if opcode.holds:
            self.stack[-1].hold(taken)
        else:
            self.stack.extend(_Thing(1 + size, taken) for _ in range(opcode.gives))

    def _taken(self, opcode: _Opcode) -> list[_Thing]:
        taken: list[_Thing] = []
        if opcode.marked:
            while (top := self.stack.pop()) is not _MARK:
                taken.append(top)
        else:
            for _ in range(opcode.takes):
                taken.append(self.stack.pop())
        return taken[::-1]

    def _argument(self, opcode: _Opcode) -> tuple[int, int]:
        """(the number that an argument is, where it is of a place or a length; the bytes of text that it brings)."""
        kind = opcode.argument
        if kind is None:
            return 0, 0
        if kind >= 0:
            return int.from_bytes(self._read(kind), "little"), 0
        if kind in _LENGTHS:
            length = int.from_bytes(self._read(_LENGTHS[kind]), "little")
            self._require_there(length)
            self.stream.seek(length, io.SEEK_CUR)
            return 0, length
        line = self.stream.readline()
        if kind == _TWO_LINES:
            line += self.stream.readline()
        return int(line) if opcode.name in ("PUT", "GET") else 0, len(line)

    def _require_there(self, length: int) -> None:
        if length > self.end - self.stream.tell():
            raise pickle.UnpicklingError(f"a part of it is said to have {length} bytes, which it has not")

    def _read(self, length: int) -> bytes:
        found = self.stream.read(length)
        if len(found) < length:
            raise EOFError
        return found

    def _keep(self, number: int) -> None:
        if not 0 <= number <= self.count:
            raise pickle.UnpicklingError(f"it keeps a thing under the number {number}, and has {self.count} before it")
        self.memo[number] = self.stack[-1]

    def _charge(self, taken: Sequence[_Thing]) -> None:
        self.room -= sum(each.size for each in taken)
        if self.room < 0:
            raise pickle.UnpicklingError(
                "its calls and keys name the same things over and over: it is made to be large"
            )
