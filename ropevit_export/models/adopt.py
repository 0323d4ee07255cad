"""From a checkpoint's tensors to a model's weights: every key accounted for, or an error that names it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, MODELS
from ropevit_export.values import Checkpoint, Weights

_NAMES_SHOWN = 6
# Axial Swin files carry their frequencies as a buffer; they are compared with the formula, not loaded.
_AXIAL_FREQUENCIES = re.compile(r"(^|\.)rope_freqs$")


def adopt(spec: ModelSpec, checkpoint: Checkpoint) -> Weights:
    """The model's float32 parameters under official names; the number of classes is the file's.

    Raises CheckpointError that names missing, unexpected, wrongly shaped and non-finite parameters.
    """
    family = FAMILIES[spec.family]
    official = family.official(spec, checkpoint.tensors)
    found = official.tensors
    if fault := _frequency_fault(spec, found):
        raise CheckpointError(f"{checkpoint.source}: {fault}{_owner(spec, checkpoint.tensors)}")
    fixed = _fixed_frequencies(spec, found)
    tensors = {name: tensor for name, tensor in found.items() if name not in fixed}
    head = tensors.get("head.weight")
    classes = head.shape[0] if head is not None and head.ndim == 2 else spec.classes
    if head is not None and classes == 0:
        raise CheckpointError(f"{checkpoint.source}: head.weight has no rows, needs at least one class.")
    expected = family.shapes(family.as_filed(spec, tensors), classes)
    expected |= {name: tuple(tensors[name].shape) for name in family.OPTIONAL if name in tensors}
    problems = [
        _named("missing", expected.keys() - tensors.keys()),
        _named("unexpected", tensors.keys() - expected.keys()),
        _named("wrong shape", (_shape_fault(spec, name, expected[name], tensors[name].shape)
                               for name in expected.keys() & tensors.keys())),
    ]  # fmt: skip
    if any(problems):
        raise CheckpointError(
            f"{checkpoint.source} does not fit {spec.name}: {'; '.join(filter(None, problems))}."
            f"{_owner(spec, checkpoint.tensors)}"
        )
    return Weights(
        tensors={name: _float32(checkpoint.source, name, tensors[name]) for name in expected},
        classes=classes,
        choices=official.choices,
    )


def _fixed_frequencies(spec: ModelSpec, names: Iterable[str]) -> set[str]:
    """Those of `names` that the model computes: they are checked, not loaded."""
    return {name for name in names if spec.rope.kind == "axial" and _AXIAL_FREQUENCIES.search(name)}


def _frequency_fault(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """What is wrong with a file whose fixed frequencies are not the published ones: it is of another model or theta."""
    pairs = spec.head_dim // 2
    expected = torch.from_numpy(frequencies.axial(spec.rope, spec.head_dim))
    for name in sorted(_fixed_frequencies(spec, tensors)):
        freqs = tensors[name]
        if not freqs.is_floating_point() or freqs.ndim != 3 or freqs.shape[0] != 2 or freqs.shape[2] != pairs:
            return f"{name} is {freqs.dtype} {tuple(freqs.shape)}, needs floating-point (2, heads, {pairs})."
        error = float((freqs.double() - expected).abs().max())
        if not error < max(1e-5, torch.finfo(freqs.dtype).eps):
            return (
                f"{name} differs by {error:.1e} from axial frequencies of theta {spec.rope.theta:g}: "
                "this checkpoint learned its frequencies or was trained with another theta, "
                f"which {spec.name} does not describe."
            )
    return None


def _shape_fault(spec: ModelSpec, name: str, expected: tuple[int, ...], found: torch.Size) -> str | None:
    """None if the shape will do; position tables may have been fine-tuned on another square grid or window."""
    given = tuple(found)
    if name == "pos_embed" and len(given) == 3:
        patches = given[1] - spec.embedded_prefix
        if patches > 0 and math.isqrt(patches) ** 2 == patches and (given[0], given[2]) == (expected[0], expected[2]):
            return None
    elif name.endswith("relative_position_bias_table") and len(given) == 2:
        side = math.isqrt(given[0])
        if side**2 == given[0] and side % 2 == 1 and given[1] == expected[1]:
            return None
    elif given == expected:
        return None
    return f"{name} {given}, needs {expected}"


def _float32(source: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, needs floating-point numbers.")
    out = tensor.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(out).all()):
        bad = int((~torch.isfinite(out)).sum())
        raise CheckpointError(
            f"{source}: {name} holds {bad} NaN or infinite values of {out.numel()}; the checkpoint is broken, "
            "take an earlier one."
        )
    return out


def _named(problem: str, names: Iterable[str | None]) -> str | None:
    found = sorted(name for name in names if name)
    if not found:
        return None
    shown = ", ".join(found[:_NAMES_SHOWN])
    more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    return f"{problem} {shown}{more}"


def _owner(wanted: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> str:
    """A hint when the tensors are exactly another model's, or more than one's: a table leaves no trace in a file."""
    owners = [spec for spec in (*MODELS, *EXAMPLES) if _owns(spec, tensors)]
    if not owners or wanted in owners:
        return ""
    names, shorts = (" or ".join(each) for each in zip(*((spec.name, spec.short) for spec in owners), strict=True))
    return f" Its parameters are those of {names}: try --model {shorts}."


def _owns(spec: ModelSpec, given: Mapping[str, torch.Tensor]) -> bool:
    family = FAMILIES[spec.family]
    try:
        tensors = family.official(spec, given).tensors
    except CheckpointError:
        return False
    head = tensors.get("head.weight")
    classes = spec.classes if head is None else len(head)
    shapes = family.shapes(family.as_filed(spec, tensors), classes)
    if tensors.keys() - _fixed_frequencies(spec, tensors) - set(family.OPTIONAL) != shapes.keys() or _frequency_fault(
        spec, tensors
    ):
        return False
    return all(
        not _shape_fault(spec, name, shape, tensors[name].shape)
        for name, shape in shapes.items()
        if not name.startswith("head.")
    )
