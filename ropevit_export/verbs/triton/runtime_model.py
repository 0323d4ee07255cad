"""Python backend: a bundle through `ropevit_export.runtime`, for servers without a backend for its graphs.

Copied into the repository. Needs ropevit-export where the server's Python is. Triton hands over the requests of a batch
one by one: they run as one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from ropevit_export.runtime import load


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.input, self.outputs = config["input"][0]["name"], [each["name"] for each in config["output"]]
        self.model = load(Path(__file__).resolve().parent / "bundle")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        images = [triton.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        responses: dict[int, Any] = {}
        # Of a graph for any size a batch may hold several sizes: the pictures of one run together.
        for shape in dict.fromkeys(each.shape[1:] for each in images):
            mine = [index for index, each in enumerate(images) if each.shape[1:] == shape]
            answers = self._answers([images[index] for index in mine])
            responses |= dict(zip(mine, answers, strict=True))
        return [responses[index] for index in range(len(requests))]

    def _answers(self, images: Sequence[Any]) -> list[Any]:
        try:
            answers = self.model.run_all(np.concatenate(images))
        except Exception as error:  # the server goes on
            return [triton.InferenceResponse(error=triton.TritonError(str(error)))] * len(images)
        ends = np.cumsum([len(each) for each in images])[:-1]
        parts = {name: np.split(answers[name], ends) for name in self.outputs}
        return [
            triton.InferenceResponse(
                output_tensors=[triton.Tensor(name, np.ascontiguousarray(parts[name][index])) for name in self.outputs]
            )
            for index in range(len(images))
        ]
