"""Seeded weights for a model that has none: to build, time and compare, never to classify."""

from __future__ import annotations

import hashlib
import zlib

import torch

from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Checkpoint

# Standard deviation and mean by the last part of a parameter's name. Chosen so that every block, table and
# embedding moves the logits, whose standard deviation is about 1: with a training initialisation (LayerScale 1e-5,
# zero biases) a wrong graph would pass for a right one.
_SPREAD = {
    "gamma_1": (0.3, 0.05),
    "gamma_2": (0.3, 0.05),
    "cls_token": (0.0, 0.2),
    "reg_token": (0.0, 0.2),
    "q_bias": (0.0, 0.1),
    "v_bias": (0.0, 0.1),
    "pos_embed": (0.0, 0.2),
    "latent": (0.0, 1.0),
    "relative_position_bias_table": (0.0, 0.2),
    "freqs": (0.0, 0.4),
    "rope_freqs": (0.0, 0.4),
    "bias": (0.0, 0.02),
}


def random_checkpoint(spec: ModelSpec, seed: int) -> Checkpoint:
    """Weights drawn from `seed`; the same on every machine that has the same torch."""
    digest = hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in FAMILIES[spec.family].shapes(spec, spec.classes).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
        tensor = torch.empty(shape).normal_(generator=generator)
        module = name.rsplit(".", 2)[-2:-1]
        if (len(shape) == 1 and name.endswith("norm.weight")) or module in (["norm1"], ["norm2"], ["norm_pre"]):
            mean, std = (1.0, 0.05) if name.endswith("weight") else _SPREAD["bias"]
        else:
            fan_in = tensor[0].numel()
            mean, std = _SPREAD.get(name.rsplit(".", 1)[-1], (0.0, fan_in**-0.5))
        tensors[name] = tensor.mul_(std).add_(mean)
        digest.update(tensor.numpy().data)
    name, known_by = f"seed {seed}", digest.hexdigest()
    return Checkpoint(
        dictionaries={"": tensors}, source="random", revision=name, sha256=known_by, trained=False, seed=seed
    )
