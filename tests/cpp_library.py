"""The C++ library through its C interface (`cpp/include/ropevit/ropevit.h`), as any language can call it: by ctypes."""

from __future__ import annotations

import ctypes as c
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# By `ropevit_type`.
TYPES = (np.dtype(np.uint8), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
STATUS = ("ok", "bundle", "backend", "input", "other")


class Options(c.Structure):
    _fields_ = [("backend", c.c_char_p), ("library", c.c_char_p), ("device", c.c_char_p), ("threads", c.c_int32),
                ("compute", c.c_char_p)]  # fmt: skip


class Pixels(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("height", c.c_int32),
        ("width", c.c_int32),
        ("pitch", c.c_int64),
        ("bgr", c.c_int32),
    ]


class Tensor(c.Structure):
    _fields_ = [
        ("name", c.c_char_p),
        ("type", c.c_int),
        ("rank", c.c_size_t),
        ("shape", c.POINTER(c.c_int64)),
        ("data", c.c_void_p),
        ("bytes", c.c_size_t),
    ]


class RopevitError(Exception):
    """`status`: bundle, backend, input or other."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = STATUS[status]


class Library:
    def __init__(self, path: Path) -> None:
        self._library: Any = c.CDLL(str(path))
        for name in ("last_error", "new_answers", "sizes", "input_bytes", "answers_size"):
            pointer = {"last_error": c.c_char_p, "new_answers": c.c_void_p}.get(name, c.c_size_t)
            getattr(self._library, f"ropevit_{name}").restype = pointer

    def call(self, name: str, *arguments: object) -> None:
        """A function that gives a status."""
        status = getattr(self._library, f"ropevit_{name}")(*arguments)
        if status:
            raise RopevitError(status, self._library.ropevit_last_error().decode())

    def plain(self, name: str, *arguments: object) -> Any:
        return getattr(self._library, f"ropevit_{name}")(*arguments)


class Model:
    """One bundle, loaded."""

    def __init__(
        self, library: Library, bundle: Path, backend: str = "", *, path: str = "", threads: int = 0, compute: str = ""
    ) -> None:
        self._library, self._model, self._answers = library, c.c_void_p(), None
        options = Options(backend.encode(), path.encode(), b"", threads, compute.encode())
        library.call("load", str(bundle).encode(), c.byref(options), c.byref(self._model))
        self._answers = c.c_void_p(library.plain("new_answers"))
        self.dtype = TYPES[library.plain("input_type", self._model)]

    def __del__(self) -> None:
        if self._answers is not None:
            self._library.plain("free_answers", self._answers)
            self._library.plain("unload", self._model)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        found = []
        for index in range(self._library.plain("sizes", self._model)):
            height, width = c.c_int32(), c.c_int32()
            self._library.plain("size", self._model, c.c_size_t(index), c.byref(height), c.byref(width))
            found.append((height.value, width.value))
        return found

    def describe(self, height: int, width: int) -> str:
        text = c.create_string_buffer(200)
        self._library.call("describe", self._model, height, width, text, c.c_size_t(len(text)))
        return text.value.decode()

    def crop(self, picture: Array, height: int, width: int, *, pitch: int = 0, bgr: bool = False) -> Array:
        out = np.empty((height, width, 3), np.uint8)
        pixels = _pixels(picture, pitch, bgr)
        self._library.call("crop", self._model, c.byref(pixels), height, width, c.c_void_p(out.ctypes.data))
        return out

    def prepare(self, picture: Array, height: int, width: int, *, bgr: bool = False) -> Array:
        nhwc = self.dtype == np.uint8
        out = np.empty((1, height, width, 3) if nhwc else (1, 3, height, width), self.dtype)
        assert out.nbytes == self._library.plain("input_bytes", self._model, height, width)
        pixels = _pixels(picture, 0, bgr)
        self._library.call("prepare", self._model, c.byref(pixels), height, width, c.c_void_p(out.ctypes.data))
        return out

    def run(self, images: Array, size: tuple[int, int] | None = None) -> dict[str, Array]:
        nhwc = self.dtype == np.uint8
        height, width = size or (images.shape[1:3] if nhwc else images.shape[2:4])
        images = np.ascontiguousarray(images)
        data, count = c.c_void_p(images.ctypes.data), c.c_size_t(len(images))
        self._library.call("run", self._model, data, TYPES.index(images.dtype), count, height, width, self._answers)
        return self._taken()

    def run_pictures(self, pictures: list[Array], height: int, width: int, *, bgr: bool = False) -> dict[str, Array]:
        batch = (Pixels * len(pictures))(*(_pixels(each, 0, bgr) for each in pictures))
        self._library.call("run_pixels", self._model, batch, c.c_size_t(len(pictures)), height, width, self._answers)
        return self._taken()

    def _taken(self) -> dict[str, Array]:
        found = {}
        for index in range(self._library.plain("answers_size", self._answers)):
            tensor = Tensor()
            self._library.call("answer", self._answers, c.c_size_t(index), c.byref(tensor))
            content = c.string_at(tensor.data, tensor.bytes)
            shape = tensor.shape[: tensor.rank]
            found[tensor.name.decode()] = np.frombuffer(content, TYPES[tensor.type]).reshape(shape)
        return found


def _pixels(picture: Array, pitch: int, bgr: bool) -> Pixels:
    height, width = picture.shape[:2]
    return Pixels(picture.ctypes.data, height, width, pitch, bgr)
