"""Unpickle a file of tensors without running any of it.

Tensors, arrays and plain containers become themselves. An object of any other class becomes inert data (`Inert`): its
class is never looked up. PyTorch's own safe loader refuses what training leaves beside weights (a config object, a
defaultdict, a later pickle protocol); its other loader runs what a file says.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch

from ropevit_export.checkpoint.bounds import require_bounded
from ropevit_export.checkpoint.foreign import STATE_DICT
from ropevit_export.errors import CheckpointError

# A global of the standard library that is called but is none of these is no data: such a file is refused by its name.
_DATA_MODULES = frozenset(
    {"abc", "argparse", "array", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
     "functools", "ipaddress", "logging", "numbers", "operator", "pathlib", "pathlib._local", "random", "re", "string",
     "types", "typing", "uuid", "zoneinfo"}
)  # fmt: skip
# Of `builtins` what a pickle of data calls. `getattr` names a method or an inner class; what it gives can't be called.
_DATA_BUILTINS = frozenset(
    {"bool", "bytearray", "bytes", "complex", "float", "getattr", "int", "object", "range", "slice", "str", "type"}
)
_STORAGES = {
    f"{kind}Storage": dtype
    for kind, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
        "Untyped": torch.uint8,
    }.items()
}  # fmt: skip
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class RefusedError(pickle.UnpicklingError):
    """A pickle that would run code; `called`: what it calls."""

    def __init__(self, called: str) -> None:
        super().__init__(called)
        self.called = called


class Inert:
    """An object of a class that is not looked up.

    origin  the class's or function's name in the file
    args    what it was called with; `state`: what its attributes are; `entries`: what was put into it by key or in
            order
    """

    __slots__ = ("args", "entries", "state")
    origin = ""
    args: tuple[Any, ...]
    state: Any
    entries: dict[Any, Any]

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        self = object.__new__(cls)
        self.args, self.state, self.entries = args, named or None, {}
        return self

    def __setstate__(self, state: Any) -> None:  # also on the class itself, which thereby can't be changed
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, item: Any) -> None:
        self.entries[len(self.entries)] = item

    add = append

    def __call__(self, *args: Any) -> Any:
        raise RefusedError(f"what {self.origin} gives")

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """Its `__dict__`, as far as the file has one."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}

    @property
    def is_module(self) -> bool:
        return {"_parameters", "_modules"} <= self.attributes.keys()


class _Code(Inert):
    """A function or class of the standard library that is no data: it may be named, not called."""

    __slots__ = ()

    def __new__(cls, *args: Any, **named: Any) -> _Code:
        raise RefusedError(cls.origin)


class NumpyArray(Inert):
    """A NumPy array, of which only bytes and their description are read."""

    __slots__ = ()

    def tensor(self) -> torch.Tensor | None:
        """None for what is no array of plain numbers."""
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            return None
        _, shape, dtype, by_column, content = self.state
        kind = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
        order = dtype.state[1] if isinstance(dtype, Inert) and isinstance(dtype.state, tuple) else "<"
        if kind not in _NUMPY_DTYPES or order == ">" or not isinstance(content, bytes) or not content:
            return None
        flat = torch.frombuffer(bytearray(content), dtype=_NUMPY_DTYPES[kind])
        return flat.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if by_column else flat.reshape(shape)


_NUMPY_DTYPES = {"f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32}


class Dictionary(dict[Any, Any]):
    """What OrderedDict, defaultdict and Counter become; what a file hangs on the dictionary itself is left out."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*(each for each in args[-1:] if isinstance(each, (dict, list))))

    def __setstate__(self, state: Any) -> None:
        pass


class Storage:
    """Bytes that tensors are views of. `content` is None while a file is only skimmed."""

    __slots__ = ("content", "dtype")

    def __init__(self, content: torch.UntypedStorage | None, dtype: torch.dtype) -> None:
        self.content, self.dtype = content, dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage has no state")


class _Function:
    """One of ours under the name that files have for it. Nothing in a file can change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any, dtype: Any = None) -> torch.Tensor | None:
    """A view of a storage, within its bounds."""
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor is made of a {type(storage).__name__}, needs a storage")
    if storage.content is None:
        return None
    dtype = dtype if isinstance(dtype, torch.dtype) else storage.dtype
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or not all(type(each) is int and each >= 0 for each in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor's offset, size and stride are not as many whole numbers from 0 on")
    last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if all(size) and (last + 1) * dtype.itemsize > storage.content.nbytes():
        raise pickle.UnpicklingError(f"a tensor of size {size} needs more bytes than its storage has")
    return torch.empty(0, dtype=dtype).set_(storage.content, offset, size, stride)


def _tensor_of_dtype(storage: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
                     *rest: Any) -> torch.Tensor | None:  # fmt: skip
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _of_type(function: Any, kind: Any, args: Any, *rest: Any) -> Any:
    """A tensor with attributes, or of a subclass: its tensor. `function` is one of ours or a class of inert data."""
    return function(*args)


def _new(kind: Any, *rest: Any) -> Any:
    """`object.__new__` of the oldest protocols."""
    if not (isinstance(kind, type) and issubclass(kind, (Inert, Dictionary))):
        raise pickle.UnpicklingError(f"an object is made of a {type(kind).__name__}, needs a class")
    return kind()


def _encoded(text: Any, *rest: Any) -> bytes:
    """Bytes, as protocol 2 keeps them; a bytearray's are bytes in later ones."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise pickle.UnpicklingError(f"bytes are made of a {type(text).__name__}, needs text")
    return text.encode("latin-1")


def _of_numpy(data: Any, *rest: Any) -> Any:
    """Tensors of devices that torch saves through NumPy."""
    return data.tensor() if isinstance(data, NumpyArray) else data


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._utils._rebuild_device_tensor_from_numpy": _of_numpy,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_numpy,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "copyreg._reconstructor": _new,
    "_codecs.encode": _encoded,
    "builtins.bytearray": lambda *args: _encoded(*args) if args else b"",
    "builtins.bytes": lambda *args: b"",
}
_CLASSES: dict[str, type] = {
    "builtins.dict": Dictionary,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    **dict.fromkeys(("collections.OrderedDict", "collections.defaultdict", "collections.Counter"), Dictionary),
}
_ARRAYS = frozenset(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))


class Unpickler(pickle.Unpickler):
    """`storage`: what a persistent id, which is where torch keeps its storages, stands for."""

    def __init__(self, stream: IO[bytes], storage: Callable[[Any], Any], nested: Callable[[bytes], Any]) -> None:
        super().__init__(stream, encoding="latin-1")
        self._storage = storage
        self._known: dict[str, Any] = {name: _Function(call) for name, call in _FUNCTIONS.items()} | _CLASSES
        self._known["torch.storage._load_from_bytes"] = _Function(nested)

    def persistent_load(self, pid: Any) -> Any:
        return self._storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        """Ours for a name that is known; else a class of its own, empty. Nothing is imported."""
        if (module, name) in _compat_pickle.NAME_MAPPING:  # names of Python 2, which protocol 2 keeps
            module, name = _compat_pickle.NAME_MAPPING[module, name]
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if full not in self._known:
            self._known[full] = self._unknown(module, name)
        return self._known[full]

    def _unknown(self, module: str, name: str) -> Any:
        top, full = module.partition(".")[0], f"{module}.{name}"
        if top == "joblib":  # writes arrays as they are between the parts of a pickle
            raise CheckpointError(f"the file is one of joblib, which is not read: {STATE_DICT}.")
        if top == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        is_method = "." in name and not name.rpartition(".")[2][:1].isupper()
        is_data = name in _DATA_BUILTINS if top == "builtins" else module in _DATA_MODULES and not is_method
        is_code = top in sys.stdlib_module_names and not is_data
        base = NumpyArray if full in _ARRAYS else _Code if is_code else Inert
        return type("Inert", (base,), {"origin": full, "__slots__": ()})


def unpickled(
    stream: IO[bytes],
    storage: Callable[[Any], Any] = lambda pid: None,
    nested: Callable[[bytes], Any] = lambda content: Inert(content),
) -> Any:
    """The next object of a stream. Raises RefusedError, CheckpointError for another library's file, and what damaged
    bytes, or such as were made to take memory, lead to.
    """
    require_bounded(stream)
    return Unpickler(stream, storage, nested).load()
