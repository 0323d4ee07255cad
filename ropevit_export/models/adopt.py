"""From a checkpoint's tensors to a model's weights: every key accounted for, or an error that names it.

dictionaries → candidates, by name and shape (`candidates`) → under official names (`families`) → fitted → float32
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ropevit_export.errors import CheckpointError
from ropevit_export.models import frequencies
from ropevit_export.models.candidates import HEADS, Candidate, candidates, is_averaged, preferred, unmixed
from ropevit_export.models.families import FAMILIES
from ropevit_export.models.official import Shapes
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import EXAMPLES, MODELS
from ropevit_export.values import Checkpoint, Resolution, Weights

Grid = tuple[int, int]

_NAMES_SHOWN = 6
# Axial Swin files carry their frequencies as a buffer; they are compared with the formula, not loaded.
_AXIAL_FREQUENCIES = re.compile(r"(^|\.)rope_freqs$")
# What training keeps under the network's own names and no network computes with: losses, counters of operations and
# steps, and what is read in pre-training alone.
_OF_TRAINING = re.compile(
    r"(^|\.)(total_ops|total_params|num_batches_tracked|n_averaged|num_updates|decay|step|steps|epoch|mask_token)$"
    r"|^(criterion|loss|losses|loss_fn|loss_func|metrics?|(train|val|test)_(acc|accuracy|metrics?|loss)|ema|model_ema"
    r"|ema_model|teacher|decoder|optimizer|scheduler|lr_scheduler|scaler|augment\w*|mixup)(_fn)?\."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """A candidate's tensors under official names, whatever their format, as far as the model takes them."""

    candidate: Candidate
    tensors: Mapping[str, torch.Tensor]
    classes: int
    embed_grid: Grid | None
    window: Grid | None
    choices: tuple[str, ...]


class _MisfitError(Exception):
    """`missing`, `unexpected`, `wrong` (sentences): official names that don't fit; or a `fault` behind which no name
    is looked at.
    """

    def __init__(
        self,
        *,
        missing: Collection[str] = (),
        unexpected: Collection[str] = (),
        wrong: Collection[str] = (),
        fault: str = "",
    ) -> None:
        super().__init__(fault)
        self.missing, self.unexpected, self.wrong, self.fault = (
            sorted(missing),
            sorted(unexpected),
            sorted(wrong),
            fault,
        )

    @property
    def size(self) -> int:
        """By how much it misses; a fault is found only where the names fit."""
        return len(self.missing) + len(self.unexpected) + len(self.wrong)

    def sentence(self, spec: ModelSpec) -> str:
        if self.fault:
            return self.fault
        parts = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.wrong))
        return f"does not fit {spec.name}: {'; '.join(f'{kind} {_named(names)}' for kind, names in parts if names)}."


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
        raise CheckpointError(_refusal(spec, checkpoint, misfits, sizes))
    fit, of_several = _chosen(checkpoint, fits)
    if passed_over := [each for each, _ in misfits if each.key != fit.candidate.key and not fit.candidate.renamed]:
        of_several.append(f"passed over, as it does not fit: {_keys(passed_over)}")
    of_several += [
        f"left out: {place}, {made_by}; to export averaged weights, copy them into the model where it was trained and "
        "save its state_dict"
        for place, made_by in checkpoint.unread.items()
        if made_by.startswith("a list without names") and not place.startswith("optim")
    ]
    return Weights(
        tensors={name: _float32(checkpoint.source, name, tensor) for name, tensor in fit.tensors.items()},
        classes=fit.classes,
        embed_grid=fit.embed_grid,
        window=fit.window,
        choices=(*of_several, *fit.choices),
    )


def _tried(
    spec: ModelSpec, given: Iterable[Candidate], sizes: Sequence[Resolution]
) -> tuple[list[_Fit], list[tuple[Candidate, _MisfitError]]]:
    fits: list[_Fit] = []
    misfits = []
    for candidate in given:
        try:
            fits.append(_fitted(spec, candidate, sizes))
        except _MisfitError as error:
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
    """Raises _MisfitError. `strict`: with nothing left over."""
    family = FAMILIES[spec.family]
    try:
        official = family.official(spec, candidate.tensors)
    except CheckpointError as error:
        raise _MisfitError(fault=str(error)) from error
    tensors, choices = dict(official.tensors), list(official.choices)
    if candidate.renamed:
        choices.append("names are read without model, backbone and the like, which stand before some of them only")
    if fault := _frequency_fault(spec, tensors):
        raise _MisfitError(fault=fault)
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
    grids = _Grids(filed, expected, sizes)
    left = {name for name in tensors.keys() - expected.keys() if not strict and _is_unused(spec, name, tensors[name])}
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - left
    wrong = [fault for name in expected.keys() & tensors.keys() if (fault := grids.fault(name, tensors[name]))]
    if len(grids.windows) > 1:
        sides = " and ".join("x".join(map(str, window)) for window in sorted(grids.windows))
        wrong.append(f"relative_position_bias_table, of windows of {sides} tokens: needs one for all stages")
    if missing or unexpected or wrong:
        raise _MisfitError(missing=missing, unexpected=unexpected, wrong=wrong)
    if left | beside:
        choices.append(f"left out of the file, no part of the model: {_named(sorted(left | beside))}")
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
        raise _MisfitError(fault="head.weight has no rows, needs at least one class.")
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


class _Grids:
    """Whether shapes will do. Position tables may have been fine-tuned on another grid or window than the published
    one: `embed` and `windows` are what they are on. A square one can be told by its size, another must be a size asked
    for. A Swin has one window in all its stages.
    """

    def __init__(self, spec: ModelSpec, expected: Shapes, sizes: Sequence[Resolution]) -> None:
        self.expected = expected
        self.front = spec.embedded_prefix
        self.embed: Grid | None = None
        self.windows: set[Grid] = set()
        self._grids = [spec.grid(size) for size in sizes]
        self._windows = [spec.window(size) for size in sizes]

    def fault(self, name: str, tensor: torch.Tensor) -> str | None:
        """None if the shape will do."""
        expected, given = self.expected[name], tuple(tensor.shape)
        sentence = f"{name} {given}, needs {expected}"
        if name == "pos_embed" and len(given) == 3 and (given[0], given[2]) == (expected[0], expected[2]):
            self.embed = _grid(given[1] - self.front, self._grids)
            return None if self.embed else f"{sentence}, a square grid or that of a --res"
        if name.endswith("relative_position_bias_table") and len(given) == 2 and given[1] == expected[1]:
            doubled = _grid(given[0], [(2 * rows - 1, 2 * columns - 1) for rows, columns in self._windows])
            if doubled is None or doubled[0] % 2 == 0 or doubled[1] % 2 == 0:
                return sentence
            self.windows.add((doubled[0] // 2 + 1, doubled[1] // 2 + 1))
            return None
        if name == "patch_embed.proj.weight" and len(given) == 4 and given[1] != expected[1]:
            return f"{sentence}: {_channels(given[1])}"
        return None if given == expected else sentence


def _channels(count: int) -> str:
    """What to do about a model that was trained on images of other channels than three."""
    if count == 1:
        return (
            "it is of a model for gray images, and graphs take RGB. Gray pictures as RGB have equal channels: for them "
            "w.repeat(1, 3, 1, 1) / 3 in its place is the same model, with one --mean and one --std for all channels"
        )
    return f"it is of a model for images of {count} channels, and graphs take RGB: it can't be exported"


def _grid(count: int, asked: Iterable[Grid]) -> Grid | None:
    """Rows and columns of so many positions."""
    side = math.isqrt(max(count, 0))
    if side**2 == count and side:
        return side, side
    return next(((rows, columns) for rows, columns in asked if rows * columns == count), None)


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


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"


# Errors


def _refusal(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    misfits: Sequence[tuple[Candidate, _MisfitError]],
    sizes: Sequence[Resolution],
) -> str:
    """Of the candidate that misses by least."""
    candidate, misfit = min(misfits, key=lambda pair: pair[1].size)
    where = f" ({candidate.key})" if candidate.key else ""
    sentence = misfit.sentence(spec)
    text = f"{checkpoint.source}{where}{': ' if misfit.fault else ' '}{sentence}"
    return text + (_way_out(checkpoint, candidate, misfit) or _owner(spec, candidate, sizes) or _rule(misfit))


def _way_out(checkpoint: Checkpoint, candidate: Candidate, misfit: _MisfitError) -> str:
    """What can be done about files of a kind that is known."""
    unexpected, missing = misfit.unexpected, set(misfit.missing)
    if any(".lora_" in name or ".base_layer." in name for name in candidate.tensors):
        return " It holds LoRA adapters: merge them first, with model.merge_and_unload(), and save that."
    if any(name.startswith(("head_dist.", "dist_token")) for name in unexpected):
        return " It is of a distilled model, with two heads and a second class token: no model here has them."
    place = candidate.key
    unread = {name: origin for name, origin in checkpoint.unread.items() if not place or name.startswith(place)}
    lost = {name: origin for name, origin in unread.items() if name.removeprefix(place).lstrip(".") in missing}
    lost |= {name: origin for name, origin in checkpoint.unread.items() if origin.startswith("a whole pickled module")}
    if not lost:
        return ""
    name, origin = next(iter(lost.items()))
    return (
        f" {name} is made by {origin}, which is not read: needs plain tensors, as "
        'torch.save(model.state_dict(), "weights.pth") writes them of a model on one device.'
    )


def _rule(misfit: _MisfitError) -> str:
    """The one replacement in all names that would make them fit, or what leaving names out takes."""
    missing, unexpected = misfit.missing, misfit.unexpected
    if misfit.wrong or not unexpected:
        return ""
    if not missing:
        return (
            " A model that computes with them is another one; if none does, leave them out of the file: "
            f"state_dict.pop({unexpected[0]!r})."
        )
    for name in missing:
        for other in unexpected:
            rule = _replacement(other, name)
            if rule and sorted(each.replace(*rule, 1) for each in unexpected) == missing:
                theirs, ours = rule
                return f" With {ours!r} for {theirs!r} in these names it would fit: rename them in the file."
    return ""


def _replacement(theirs: str, ours: str) -> tuple[str, str] | None:
    """The smallest run of words to replace in one name to get the other."""
    left, right = theirs.split("."), ours.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop(), right.pop()
    if len(left) + len(right) == len(theirs.split(".")) + len(ours.split(".")):  # not even the last word
        return None
    while left and right and left[0] == right[0]:
        left.pop(0), right.pop(0)
    run, place = ".".join(left), ".".join(right)
    return (f"{run}.", f"{place}." if place else "") if run else None


def _owner(wanted: ModelSpec, candidate: Candidate, sizes: Sequence[Resolution]) -> str:
    """A hint when the tensors are exactly another model's. A fixed table leaves no trace in a file: of models that
    differ in one, none is advised, it would compute something else without a word.
    """
    owners = [spec for spec in (*MODELS, *EXAMPLES) if _owns(spec, candidate, sizes)]
    if not owners or wanted in owners:
        return ""
    names, shorts = (" or ".join(each) for each in zip(*((spec.name, spec.short) for spec in owners), strict=True))
    if len({spec.rope for spec in owners if spec.rope.kind != "mixed"}) > 1:  # whose frequencies are in the file
        return (
            f" Its parameters are those of {names}, which differ in what leaves no trace in a file: only who trained "
            "it can say which it is."
        )
    return f" Its parameters are those of {names}: try --model {shorts}."


def _owns(spec: ModelSpec, candidate: Candidate, sizes: Sequence[Resolution]) -> bool:
    try:
        _fitted(spec, replace(candidate, beside={}), sizes, strict=True)
    except _MisfitError:
        return False
    return True
