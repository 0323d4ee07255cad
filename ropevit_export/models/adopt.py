"""From a checkpoint's tensors to a model's weights: every key accounted for, or an error that names it.

dictionaries → candidates, by name and shape (`candidates`) → under official names (`families`) → fitted → float32
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies
from ropevit_export.models.candidates import HEADS, Candidate, candidates, is_averaged, preferred, unmixed
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.grids import Grid, Grids
from ropevit_export.models.misfit import MisfitError, named, refusal
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, MODELS
from ropevit_export.values import Checkpoint, Resolution, Weights

# Axial Swin files carry their frequencies as a buffer; they are compared with the formula, not loaded.
_AXIAL_FREQUENCIES = re.compile(r"(^|\.)rope_freqs$")
# What training keeps under the network's own names and no network computes with: losses, counters of operations and
# steps, and what is read in pre-training alone.
_OF_TRAINING = re.compile(
    r"(^|\.)(total_ops|total_params|num_batches_tracked|n_averaged|num_updates|decay|step|steps|epoch|mask_token)$"
    r"|^(criterion|loss|losses|loss_fn|loss_func|metrics?|(train|val|test)_(acc|accuracy|metrics?|loss)|ema|model_ema"
    r"|ema_model|teacher|decoder|optimizer|scheduler|lr_scheduler|scaler|augment\w*|mixup)(_fn)?\."
)

# No model has a tenth of it: whose a file with more is need not be looked for, row by row.
_MOST_TENSORS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """A candidate's tensors under official names, whatever their format, as far as the model takes them."""

    candidate: Candidate
    tensors: Mapping[str, torch.Tensor]
    classes: int
    embed_grid: Grid | None
    window: Grid | None
    choices: tuple[str, ...]


def adopt(
    spec: ModelSpec, checkpoint: Checkpoint, *, key: str | None = None, sizes: Sequence[Resolution] = ()
) -> Weights:
    """The model's float32 parameters under official names; the number of classes is the file's.

    key: which of several dictionaries that fit, by its place in the file. sizes: those asked for; an embedding whose
    grid is not square is of one of them. Raises CheckpointError that names missing, unexpected, wrongly shaped and
    non-finite parameters, or the dictionaries that there are.
    """
    given = candidates(checkpoint.dictionaries)
    if not given:
        raise CheckpointError(f"{checkpoint.source} holds an optimizer's tensors only: needs a model's.")
    chosen = given if key is None else _called(given, key)
    if not chosen:
        raise CheckpointError(f"{checkpoint.source} has no model under {key}: --weights-key takes {_keys(given)}.")
    fits, misfits = _tried(spec, chosen, sizes)
    if not fits and key is None:
        fits, _ = _tried(spec, unmixed(checkpoint.dictionaries), sizes)
    if not fits:
        candidate, misfit = min(misfits, key=lambda pair: pair[1].size)
        raise CheckpointError(refusal(spec, checkpoint, candidate, misfit, _owner(spec, candidate, sizes)))
    fit, of_several = _chosen(checkpoint, fits)
    if passed_over := [each for each, _ in misfits if each.key != fit.candidate.key and not fit.candidate.renamed]:
        of_several.append(f"passed over, as it does not fit: {_keys(passed_over)}")
    of_several += [
        f"left out: {place}, {made_by}; to export averaged weights, copy them into the model where it was trained and "
        "save its state_dict"
        for place, made_by in checkpoint.unread.items()
        if made_by.startswith("a list without names") and not place.startswith("optim")
    ]
    if checkpoint.beside:
        of_several.append(f"of the folder {checkpoint.source} is read, not {named(checkpoint.beside)}")
    tensors = {name: _float32(checkpoint.source, name, tensor) for name, tensor in fit.tensors.items()}
    if empty := [name for name, tensor in tensors.items() if tensor.ndim > 1 and not bool(tensor.any())]:
        of_several.append(f"zeros alone are in {named(empty)}: so they are where a download has not ended")
    return Weights(
        tensors=tensors,
        classes=fit.classes,
        embed_grid=fit.embed_grid,
        window=fit.window,
        choices=(*of_several, *fit.choices),
    )


def _tried(
    spec: ModelSpec, given: Iterable[Candidate], sizes: Sequence[Resolution]
) -> tuple[list[_Fit], list[tuple[Candidate, MisfitError]]]:
    fits: list[_Fit] = []
    misfits = []
    for candidate in given:
        try:
            fits.append(_fitted(spec, candidate, sizes))
        except MisfitError as error:
            misfits.append((candidate, error))
    return fits, misfits


def _called(given: list[Candidate], key: str) -> list[Candidate]:
    """Those of that very key, else those that have it in theirs."""
    return [each for each in given if each.key == key] or [each for each in given if each.is_called(key)]


def _chosen(checkpoint: Checkpoint, fits: list[_Fit]) -> tuple[_Fit, list[str]]:
    """Of several dictionaries that fit the one that the code which writes such a file takes, and a sentence on it."""
    found = [fit.candidate for fit in fits]
    best = preferred(found)
    if best is None and all(each.is_same(found[0]) for each in found):
        best = found[0]
    if best is None:
        raise CheckpointError(
            f"{checkpoint.source} has several dictionaries that fit: {_keys(found)}. Choose with --weights-key."
        )
    fit = next(fit for fit in fits if fit.candidate is best)
    others = [each for each in found if each is not best]
    said = f"weights are the file's {best.key}" if best.key else ""
    if others:
        averaged = " (averaged)" if is_averaged(best) else ""
        said = f"weights are the file's {best.key or 'own'}{averaged}, not {_keys(others)}: --weights-key chooses"
    elif best.place == "" and best.prefix:
        said = f"names are read without {best.prefix}"
    return fit, [said] if said else []


def _keys(given: Iterable[Candidate]) -> str:
    return ", ".join(each.key or "the file itself" for each in given)


def _fitted(spec: ModelSpec, candidate: Candidate, sizes: Sequence[Resolution], *, strict: bool = False) -> _Fit:
    """Raises MisfitError. `strict`: with nothing left over."""
    family = FAMILIES[spec.family]
    try:
        official = family.official(spec, candidate.tensors)
    except CheckpointError as error:
        raise MisfitError(fault=str(error)) from error
    tensors, choices = dict(official.tensors), list(official.choices)
    if candidate.renamed:
        choices.append("names are read without model, backbone and the like, which stand before some of them only")
    if fault := _frequency_fault(spec, tensors):
        raise MisfitError(fault=fault)
    for name in _fixed_frequencies(spec, tensors):
        del tensors[name]
    filed = family.as_filed(spec, tensors)
    beside = set(candidate.beside)
    if not strict:
        sentence, taken = _take_head(spec, tensors, candidate)
        choices += [sentence] if sentence else []
        beside -= set(taken)
    classes = _classes(tensors)
    expected = family.shapes(filed, classes)
    expected |= {name: tuple(tensors[name].shape) for name in family.OPTIONAL if name in tensors}
    grids = Grids(filed, expected, sizes)
    left = {name for name in tensors.keys() - expected.keys() if not strict and _is_unused(spec, name, tensors[name])}
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - left
    wrong = [fault for name in expected.keys() & tensors.keys() if (fault := grids.fault(name, tensors[name]))]
    if len(grids.windows) > 1:
        sides = " and ".join("x".join(map(str, window)) for window in sorted(grids.windows))
        wrong.append(f"relative_position_bias_table, of windows of {sides} tokens: needs one for all stages")
    if missing or unexpected or wrong:
        raise MisfitError(missing=missing, unexpected=unexpected, wrong=wrong)
    if left | beside:
        choices.append(f"left out of the file, no part of the model: {named(sorted(left | beside))}")
    return _Fit(
        candidate=candidate,
        tensors={name: tensors[name] for name in expected},
        classes=classes,
        embed_grid=grids.embed,
        window=next(iter(grids.windows), official.window),
        choices=tuple(choices),
    )


def _classes(tensors: Mapping[str, torch.Tensor]) -> int:
    """0 for a file without a head."""
    head = tensors.get("head.weight")
    if head is None:
        return 1 if "head.bias" in tensors else 0  # of which the weight is then missing
    if head.ndim == 2 and head.shape[0] == 0:
        raise MisfitError(fault="head.weight has no rows, needs at least one class.")
    return head.shape[0] if head.ndim == 2 else 1


def _head_names(candidate: Candidate) -> list[str]:
    """What of the tensors beside a network is called a head, weight and bias: at its level, or around it."""
    levels = candidate.prefix.split(".")[:-1]
    around = [".".join((*levels[:at], "")) for at in range(len(levels) - 1, -1, -1)] or [""]
    outer = candidate.place.rpartition(".")[0]
    around = [*around, f"{outer}." if outer else ""]
    return next((names for level in around if (names := _head_at(level, candidate.beside))), [])


def _head_at(level: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    for head in HEADS:
        names = [f"{level}{head}.weight", f"{level}{head}.bias"]
        if all(name in tensors for name in names):
            return names
    return []


def _take_head(spec: ModelSpec, tensors: dict[str, torch.Tensor], candidate: Candidate) -> tuple[str, Collection[str]]:
    """Complete a head in place: one that has no bias, or that stands beside the network. A sentence on it, and what was
    taken of `candidate.beside`.
    """
    width = spec.dims[-1]
    weight = tensors.get("head.weight")
    if weight is not None and weight.ndim == 2 and "head.bias" not in tensors:
        tensors["head.bias"] = weight.new_zeros(len(weight))
        return "the head has no bias", ()
    if any(name.startswith("head.") for name in tensors):
        return "", ()
    for around, names in ((tensors, _head_at("", tensors)), (candidate.beside, _head_names(candidate))):
        if not names:
            continue
        weight, bias = (around[name] for name in names)
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            continue
        for name in names:
            tensors.pop(name, None)
        tensors["head.weight"], tensors["head.bias"] = weight, bias
        said = f"the head is the file's {names[0]}, {len(weight)} classes"
        return f"{said}, fed the pooled feature as the model's own is", names
    return "", ()


def _is_unused(spec: ModelSpec, name: str, tensor: torch.Tensor) -> bool:
    """Whether a name that the model has no place for is of a kind that it would compute nothing with."""
    if not tensor.is_floating_point() or _OF_TRAINING.search(name):
        return True
    return name in FAMILIES[spec.family].unused(spec)


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


def _owner(wanted: ModelSpec, candidate: Candidate, sizes: Sequence[Resolution]) -> str:
    """A hint when the tensors are exactly another model's. A fixed table leaves no trace in a file: of models that
    differ in one, none is advised, it would compute something else without a word.
    """
    if len(candidate.tensors) > _MOST_TENSORS:
        return ""
    owners = [spec for spec in (*MODELS, *EXAMPLES) if _owns(spec, candidate, sizes)]
    if not owners or wanted in owners:
        return ""
    names, shorts = (" or ".join(each) for each in zip(*((spec.name, spec.short) for spec in owners), strict=True))
    if len({spec.rope for spec in owners if spec.rope.kind != "mixed"}) > 1:  # whose frequencies are in the file
        return (
            f"Its parameters are those of {names}, which differ in what leaves no trace in a file: only who trained "
            "it can say which it is."
        )
    return f"Its parameters are those of {names}: try --model {shorts}."


def _owns(spec: ModelSpec, candidate: Candidate, sizes: Sequence[Resolution]) -> bool:
    try:
        _fitted(spec, replace(candidate, beside={}), sizes, strict=True)
    except MisfitError:
        return False
    return True
