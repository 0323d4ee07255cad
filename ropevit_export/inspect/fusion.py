"""Which blocks' attention an engine computes in one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from ropevit_export.errors import BackendError
from ropevit_export.inspect import graph, kernels
from ropevit_export.inspect.kernels import Kernel


def not_fused(found: Iterable[Kernel], attentions: Mapping[str, str], products: Set[str]) -> tuple[str, ...]:
    """Blocks whose attention is several kernels. It is one where the softmax stands behind the same kernel as two
    products, of scores and of values, or the kernel is called so. `attentions`: block by the node of its softmax.
    `products`: names of such nodes.
    """
    whole = (each for each in found if each.is_fused_attention or len(products & set(each.nodes)) >= 2)
    fused = {node for kernel in whole for node in kernel.nodes}
    return tuple(block for node, block in attentions.items() if node not in fused)


def require(artifact: str, onnx: Path, layers: Iterable[Mapping[str, Any]]) -> None:
    """Raise BackendError that names the blocks whose attention is not fused in one of the engine's profiles."""
    nodes = graph.named(onnx)
    for mine in kernels.by_profile(kernels.of_layers(layers)):
        missing = not_fused(mine, nodes.attentions, nodes.products)
        if missing:
            raise BackendError(
                f"{artifact}: attention is not fused in {len(missing)} of {len(nodes.attentions)} blocks "
                f"({', '.join(missing)}), as --require-fused-attention asks; nothing was written."
            )
