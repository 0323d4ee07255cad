"""A file that does not fit its model: what of it does not, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ropevit_export.machine import shards
from ropevit_export.models.candidates import Candidate
from ropevit_export.models.spec import ModelSpec
from ropevit_export.values import Checkpoint

_NAMES_SHOWN = 6
# What frameworks make of parameters, by what they call these, and how they become plain ones again.
_REMADE = (
    (
        r"\.lora_|\.base_layer\.",
        "It holds LoRA adapters: merge them first, with model.merge_and_unload(), and save that.",
    ),
    (
        r"(^|\.)_?flat_param",
        "FSDP has flattened them: save the whole state, which torch.distributed.checkpoint.state_dict's "
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) gives.",
    ),
    (
        r"\.parametrizations\.",
        'They are parametrised: torch.nn.utils.parametrize.remove_parametrizations(module, "weight") of those modules '
        "makes plain ones; save the state_dict then.",
    ),
    (
        r"\.weight_[gv]$",
        "They are of weight_norm: torch.nn.utils.remove_weight_norm(module) of those modules makes plain ones; save "
        "the state_dict then.",
    ),
    (
        r"\.(weight|bias)_mask$",
        'They are pruned: torch.nn.utils.prune.remove(module, "weight") of those modules makes plain ones; save the '
        "state_dict then.",
    ),
    (
        r"(fake_quant|activation_post_process|_packed_params|(^|\.)(absmax|quant_map|SCB|qweight|qzeros))(\.|$)",
        "They are quantised: needs the weights of before that; --precision int8 or fp8 quantises them here.",
    ),
    (
        r"^(head_dist\.|dist_token)",
        "It is of a distilled model, with two heads and a second class token: no model here has them.",
    ),
)


class MisfitError(Exception):
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
        return f"does not fit {spec.name}: {'; '.join(f'{kind} {named(names)}' for kind, names in parts if names)}."


def refusal(spec: ModelSpec, checkpoint: Checkpoint, candidate: Candidate, misfit: MisfitError, owner: str) -> str:
    """What of a candidate does not fit, and what can be done. `owner`: what is known of another model that it fits."""
    where = f" ({candidate.key})" if candidate.key else ""
    text = f"{checkpoint.source}{where}{': ' if misfit.fault else ' '}{misfit.sentence(spec)}"
    advice = _way_out(checkpoint, candidate, misfit) or owner or _rule(misfit) or _measures(spec, candidate)
    return f"{text} {advice}" if advice else text


def _way_out(checkpoint: Checkpoint, candidate: Candidate, misfit: MisfitError) -> str:
    """About files of a kind that is known."""
    for pattern, advice in _REMADE:
        if any(re.search(pattern, name) for name in misfit.unexpected or candidate.tensors):
            return advice
    if misfit.wrong and all(" (0,), needs " in each for each in misfit.wrong):
        return (
            "They are empty, as DeepSpeed leaves them whose processes have a part each: its zero_to_fp32.py makes "
            "weights of the whole folder."
        )
    if misfit.missing and shards.is_shard(checkpoint.source):
        return "It is named as one of several shards are: give their folder or index."
    return _unread(checkpoint, candidate.key, misfit)


def _unread(checkpoint: Checkpoint, place: str, misfit: MisfitError) -> str:
    """Where something stands in a missing tensor's place."""
    unread = {name: origin for name, origin in checkpoint.unread.items() if not place or name.startswith(place)}
    lost = {name: origin for name, origin in unread.items() if name.removeprefix(place).lstrip(".") in misfit.missing}
    lost |= {name: origin for name, origin in checkpoint.unread.items() if origin.startswith("a whole pickled module")}
    if not lost:
        return ""
    name, origin = next(iter(lost.items()))
    return (
        f"{name} is made by {origin}, which is not read: needs plain tensors, as "
        'torch.save(model.state_dict(), "weights.pth") writes them of a model on one device.'
    )


def _measures(spec: ModelSpec, candidate: Candidate) -> str:
    """Where a file's network is deeper or wider, or has other patches, than the model."""
    patches = candidate.tensors.get("patch_embed.proj.weight")
    blocks = {found[1] for name in candidate.tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    if patches is None or patches.ndim != 4 or not blocks:
        return ""
    theirs = {"depth": len(blocks), "embed_dim": patches.shape[0], "patch_size": patches.shape[3]}
    ours = {"depth": sum(spec.depths), "embed_dim": spec.dims[0], "patch_size": spec.patch}
    other = {name: value for name, value in theirs.items() if value != ours[name]}
    if not other:
        return ""
    said = f"The file has {_equations(theirs)}; {spec.short} has {_equations(ours)}."
    if spec.family != "vit" or spec.timm is None or spec.rope.kind == "none":
        return said
    given = ",".join(f"{name}={value}" for name, value in other.items())
    return (
        f"{said} If it was trained so, --model timm:{spec.timm} --model-args {given} is that model, with its "
        "num_heads, which no file says."
    )


def _equations(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _rule(misfit: MisfitError) -> str:
    """The one replacement in all names that would make them fit, or what leaving names out takes."""
    missing, unexpected = misfit.missing, misfit.unexpected
    if misfit.wrong or not unexpected:
        return ""
    if (
        not missing
        and (head := re.match(r"head\.\d+\.", unexpected[0]))
        and all(name in (f"{head[0]}weight", f"{head[0]}bias") for name in unexpected)
    ):
        return (
            f"Where only dropout stands before it, this is the model's head: with 'head.' for {head[0]!r} in these "
            "names it would fit."
        )
    if not missing:
        return (
            "A model that computes with them is another one; if none does, leave them out of the file: "
            f"state_dict.pop({unexpected[0]!r})."
        )
    for name in missing:
        for other in unexpected:
            rule = _replacement(other, name)
            if rule and sorted(each.replace(*rule, 1) for each in unexpected) == missing:
                theirs, ours = rule
                return f"With {ours!r} for {theirs!r} in these names it would fit: rename them in the file."
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


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"
