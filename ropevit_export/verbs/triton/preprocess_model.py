"""Python backend: encoded pictures (JPEG, PNG, …) to what the graph takes, by the exporter's own code beside this file.

Copied into the repository. Needs Pillow, NumPy and ml_dtypes where the server's Python is.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from PIL import Image  # noqa: E402
from ropevit_preprocess.images.files import rgb  # noqa: E402
from ropevit_preprocess.images.preprocess import crop, in_format, normalise  # noqa: E402
from ropevit_preprocess.models.spec import Preprocess  # noqa: E402
from ropevit_preprocess.values import Resolution  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        facts = json.loads((HERE / "preprocess.json").read_text("utf-8"))
        self.preprocess = Preprocess(**facts["preprocess"])
        self.size = Resolution(**facts["size"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = triton.get_input_tensor_by_name(request, "encoded").as_numpy().ravel()
        try:
            images = np.stack([self._prepare(each) for each in encoded])
        except Exception as error:  # one request's picture must not fail those that came with it
            return triton.InferenceResponse(error=triton.TritonError(f"not a picture: {error}"))
        return triton.InferenceResponse(output_tensors=[triton.Tensor("image", images)])

    def _prepare(self, encoded: bytes) -> Any:
        with Image.open(io.BytesIO(encoded)) as picture:
            pixels = crop(rgb(picture), self.preprocess, self.size)
        if self.preprocess.dtype == "uint8":
            return pixels
        return in_format(normalise(pixels, self.preprocess), self.preprocess.dtype)
