"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ropevit_export.errors import BackendError

if TYPE_CHECKING:
    from ropevit_export.values import Arrays


class OnnxRuntime:
    """A session. ONNX Runtime silently replaces a provider that it can't load, so what it loaded is compared."""

    def __init__(self, model: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"onnxruntime can't be imported ({error}): pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=list(providers))
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"ONNX Runtime refuses {model.name}: {_line(error)}") from error
        loaded = self._session.get_providers()
        if loaded[: len(providers)] != list(providers):
            raise BackendError(f"asked ONNX Runtime for {', '.join(providers)}, it loaded {', '.join(loaded)}.")
        self._version = str(onnxruntime.__version__)
        self._providers = tuple(providers)

    @property
    def describe(self) -> str:
        return f"ONNX Runtime {self._version}, {', '.join(self._providers)}"

    def run(self, feeds: Arrays) -> Arrays:
        names = [output.name for output in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed to run: {_line(error)}") from error


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
