"""Swin's head, in the form that TensorRT has fewest kernels for."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ropevit_export.passes import edit
from ropevit_export.passes.linear import linear_layer


class MeanAfterHead(ir.passes.InPlacePass):
    """The head of the tokens' mean becomes the mean of every token's head: exact algebra.

    The last LayerNorm is then one kernel where it was two, one of them with the mean, and the mean takes the head's
    bias and cast, which a GPU of SM 75 has a kernel for otherwise. The products of 49 tokens for one are 0.8 % more
    work for a tiny Swin at 224; what is read, the weights, stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        means = [node for node in model.graph if node.op_type == "ReduceMean"]
        done = [_head_first(model.graph, mean) for mean in means]
        return ir.passes.PassResult(model, modified=any(done))


def _head_first(graph: ir.Graph, mean: ir.Node) -> bool:
    x, user = mean.inputs[0], edit.only_user(mean.outputs[0])
    head = None if user is None else linear_layer(user)
    if x is None or x.shape is None or len(x.shape) != 3 or head is None or head.bias is None:
        return False
    tokens, axes = x.shape[1], mean.inputs[1]
    if not isinstance(tokens, int) or axes is None or axes.const_value is None:
        return False
    if edit.array_of(axes).tolist() != [1] or mean.attributes["keepdims"].as_int() != 0:
        return False
    name, stored, last = head.name, x.dtype, head.add or head.product
    inputs, outputs = edit.array_of(head.weight).shape
    value = x
    steps: list[tuple[str, list[ir.Value], str, dict[str, Any]]] = [
        ("Reshape", [edit.integers(graph, [-1, inputs])], "rows", {}),
        ("MatMul", [head.weight], "product", {}),
        ("Reshape", [edit.integers(graph, [-1, tokens, outputs])], "tokens", {}),
        ("Transpose", [], "by_class", {"perm": [0, 2, 1]}),  # a mean over the last axis takes what follows it
        ("ReduceMean", [edit.integers(graph, [2])], "mean", {"keepdims": 0}),
        ("Add", [head.bias], "biased", {}),
    ]
    for kind, others, which, attributes in steps:
        node = edit.node(kind, [value, *others], f"{name}_{which}", stored, **attributes)
        graph.insert_before(last, node)
        value = node.outputs[0]
    edit.rename_to(value, head.result)
    for each in (head.add, head.product, mean):
        if each is not None:
            graph.remove(each, safe=True)
    return True
