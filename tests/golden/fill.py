#!/usr/bin/env python3
"""Write a checkpoint in the official RoPE-ViT file layout, filled by a fixed rule.

The real weights can't be had offline, so the reference logits in this folder were computed by the
authors' own implementation on weights filled by the rule below. Filling the same layout here and
running it through any other implementation must give the same logits.

    python fill.py rope_mixed_deit_small_patch16_LS out.pth [--seed 0]

The rule, for a parameter called `key` of shape `shape`:
    n = numpy.random.default_rng([crc32(key), seed]).standard_normal(shape, float32)
    gamma_1, gamma_2            0.3 + 0.05 n
    1-D *.weight (LayerNorm)    1.0 + 0.05 n
    *.bias                      0.02 n
    freqs, *.rope_freqs         0.4 n
    pos_embed, cls_token,
    *relative_position_bias_table  0.2 n
    every other weight          n / sqrt(fan_in), fan_in = product of shape[1:]
The buffers that the official files also carry (freqs_t_x, rope_t_x, attn_mask, ...) come from
buffers.npz with the values the official code gives them at 224.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def fill(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    n = np.random.default_rng([zlib.crc32(key.encode()), seed]).standard_normal(shape, dtype=np.float32)
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("gamma_1", "gamma_2"):
        return np.float32(0.3) + np.float32(0.05) * n
    if leaf in ("pos_embed", "cls_token", "relative_position_bias_table"):
        return np.float32(0.2) * n
    if leaf in ("freqs", "rope_freqs"):
        return np.float32(0.4) * n
    if leaf == "bias":
        return np.float32(0.02) * n
    if len(shape) == 1:
        return np.float32(1.0) + np.float32(0.05) * n
    return n / np.float32(np.sqrt(np.prod(shape[1:])))


def state_dict(model: str, seed: int = 0) -> dict[str, np.ndarray]:
    """All parameters and buffers of `model`, under the official key names, as float32/int64 arrays."""
    layout = json.loads((HERE / "layouts.json").read_text())[model]
    arrays = {key: fill(key, tuple(shape), seed) for key, shape in layout.items()}
    with np.load(HERE / "buffers.npz") as buffers:
        prefix = model + "/"
        arrays |= {k[len(prefix) :]: buffers[k] for k in buffers.files if k.startswith(prefix)}
    return arrays


def image(height: int, width: int, batch: int = 2) -> np.ndarray:
    """The normalised input that the reference logits were computed on, (batch, 3, height, width)."""
    return np.random.default_rng([height, width]).standard_normal((batch, 3, height, width), dtype=np.float32)


def main() -> None:
    import torch

    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("model")
    args.add_argument("out", type=Path)
    args.add_argument("--seed", type=int, default=0)
    a = args.parse_args()
    torch.save({"model": {k: torch.from_numpy(v) for k, v in state_dict(a.model, a.seed).items()}}, a.out)


if __name__ == "__main__":
    main()
