"""Weights of EVA-02, Perception Encoder and Sapiens2 as their authors publish them, and of Sapiens2 as
transformers has them, under the names of timm's `Eva`.

timm's own filter renames them. It also resizes, with antialiasing, what a module of another size needs, which the
authors don't: it is shown a module that asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ropevit_export.errors import CheckpointError
from ropevit_export.models.official import Official

if TYPE_CHECKING:
    import torch

# Whose layout a name is of: the first that any name of a file matches.
_MARKS = (
    ("perception_models", re.compile(r"^(visual\.)?conv1\.weight$")),
    ("Sapiens2", re.compile(r"^blocks\.0\.attn\.wq\.weight$")),
    ("transformers", re.compile(r"^(model\.)?layer\.0\.attention\.q_norm\.weight$")),  # Sapiens2's, in memory
    ("BAAI", re.compile(r"^(visual\.(trunk\.)?)?blocks\.0\.(mlp\.(w1|w12|ffn_ln)|attn\.inner_attn_ln)\.")),
)
# transformers' names of Sapiens2 as the authors', under which its own files are.
_SAPIENS2 = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.projection."),
    (r"^(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.w\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qk]_norm)\.", r".attn.\1."),
    (r"\.layer_scale1\.lambda1$", ".attn.gamma.weight"),
    (r"\.mlp\.down_proj\.", ".ffn.w3."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"^norm\.", "ln1."),
)
_NOT_OURS = re.compile(r"^(storage_tokens$|embeddings\.)")  # DINOv3's, which has a mask token too


def timm_layout(tensors: Mapping[str, torch.Tensor]) -> Official | None:
    """None where the file is in none of these layouts. What inference does not read, such as a text tower beside the
    image tower, is left out.
    """
    author = _author(tensors)
    if author is None:
        return None
    from timm.models.eva import checkpoint_filter_fn

    if author == "transformers":
        tensors = _sapiens2(tensors)
    patches = next(
        (
            tensor
            for name, tensor in tensors.items()
            if name.endswith(("conv1.weight", "patch_embed.proj.weight", "patch_embed.projection.weight"))
        ),
        None,
    )
    if patches is None:
        raise CheckpointError(f"the file is in the layout of {author}, but has no patch embedding: needs {_PATCHES}.")
    module = SimpleNamespace(pos_embed=None, patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=patches)))
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith("rope_embed.periods")}
    renamed: dict[str, torch.Tensor] = checkpoint_filter_fn(given, module)
    return Official(tensors=renamed, choices=(f"the file is in the layout of {author}",))


def _sapiens2(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From transformers' names to the authors', who have gate and value in one matrix."""
    import torch

    out = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.mlp\.(gate|up)_proj\.(\w+)", name):
            block, half, leaf = match.groups()
            value = tensors.get(f"{block}.mlp.up_proj.{leaf}")
            if half == "gate" and value is not None:
                out[re.sub(r"^(model\.)?layer", "blocks", f"{block}.ffn.w12.{leaf}")] = torch.cat([tensor, value])
            continue
        for theirs, ours in _SAPIENS2:
            name = re.sub(theirs, ours, name)
        out[name] = tensor
    return out


_PATCHES = "patch_embed.proj.weight"


def _author(names: Iterable[str]) -> str | None:
    names = list(names)
    for author, mark in _MARKS:
        if any(mark.match(name) for name in names):
            plain = author not in ("Sapiens2", "transformers") and any(_NOT_OURS.match(name) for name in names)
            return None if plain else author
    return None
