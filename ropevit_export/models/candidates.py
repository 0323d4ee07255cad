"""Which of a file's tensors may be a model, and under which names: found by what every ViT has, its patch embedding.

What stands before that name is a prefix, whatever it is called; the wrappers of frameworks may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

# The patch embedding's weight in the layouts that are known.
_ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.weight")
# What DistributedDataParallel, torch.compile, activation checkpointing, FSDP and Fabric put into names.
_WRAPPERS = frozenset(
    ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module"]
)
# What modules call the network within them. Taken out of the middle of names only where these are mixed.
_OWNERS = frozenset(["model", "backbone", "encoder", "timm_model", "net"])
# Where a head stands that is no part of the network, beside it or beside what holds it.
HEADS = ("head", "classifier", "fc", "linear")
# What optimisers keep of one parameter.
_OF_OPTIMIZERS = frozenset(["exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg"])
# A file with two of these: what the code that writes both takes (see docs/checkpoints.md); of timm's four names what
# timm's own `load_checkpoint` does, averaged ones first.
_PREFERRED = (
    ("state_dict_ema", "model_ema"),
    ("state_dict_ema", "state_dict"),
    ("model_ema", "state_dict"),
    ("model_ema", "model"),
    ("state_dict", "model"),
    ("state_dict", "ema_state_dict"),
    ("state_dict", "current_model_state"),
    ("teacher", "student"),
)
_AVERAGED = ("ema", "swa", "averaged", "average", "avg", "polyak", "shadow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Tensors that may be a model's.

    place    their dictionary in the file, "" for the file itself; `prefix`: what stood before their names in it
    tensors  by their names without it
    beside   the rest of the dictionary by their names in it, and what is called a head in the dictionaries around it
    renamed  whether names like `backbone.` were taken out of the middle of names
    """

    place: str
    prefix: str
    tensors: Tensors
    beside: Tensors = field(default_factory=dict)
    renamed: bool = False

    @property
    def key(self) -> str:
        """By which `--weights-key` knows it."""
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)

    @property
    def words(self) -> list[str]:
        return self.key.split(".")

    def is_called(self, key: str) -> bool:
        """`teacher`, or `state_dict.teacher`: a run of the words of its key."""
        wanted = key.strip(".").split(".")
        return any(self.words[at : at + len(wanted)] == wanted for at in range(len(self.words)))

    def is_same(self, other: Candidate) -> bool:
        """The same memory under two names."""
        mine, theirs = self.tensors, other.tensors
        return mine.keys() == theirs.keys() and all(mine[name].data_ptr() == theirs[name].data_ptr() for name in mine)


def candidates(dictionaries: Mapping[str, Tensors]) -> list[Candidate]:
    """In the order of the file. Where no dictionary has a patch embedding, the one with the most tensors."""
    cleaned = {
        place: _unwrapped(tensors) for place, tensors in dictionaries.items() if not _is_optimizer(place, tensors)
    }
    starts: dict[str, str] = {}  # what stands before an anchor, and the dictionary that this is in
    for place, tensors in cleaned.items():
        for name in tensors:
            full = f"{place}.{name}" if place else name
            for anchor in _ANCHORS:
                if full == anchor or full.endswith(f".{anchor}"):
                    starts.setdefault(full.removesuffix(anchor), place)
    if not starts and cleaned:
        place = max(cleaned, key=lambda each: len(cleaned[each]))
        return [Candidate(place=place, prefix="", tensors=cleaned[place])]
    return [_candidate(cleaned, place, before, tuple(starts)) for before, place in starts.items()]


def _is_optimizer(place: str, tensors: Tensors) -> bool:
    return any(word.startswith("optim") for word in place.split(".")) or bool(_OF_OPTIMIZERS & tensors.keys())


def _candidate(dictionaries: Mapping[str, Tensors], place: str, before: str, starts: tuple[str, ...]) -> Candidate:
    """What begins with `before`, which names a dictionary and what stands before names in it, and not with a longer one
    of `starts`. `place`: the dictionary that the patch embedding is in; one for every module, where modules are
    dictionaries.
    """
    if place and not before.startswith(f"{place}."):
        holder = before.rstrip(".")
        flat: dict[str, torch.Tensor] = {}
        for other, tensors in dictionaries.items():
            flat |= {f"{other}.{name}".removeprefix(before): each for name, each in tensors.items()
                     if f"{other}.".startswith(before)}  # fmt: skip
        return Candidate(place=holder, prefix="", tensors=flat, beside=_heads_around(dictionaries, holder))
    own = dictionaries[place]
    around = f"{place}." if place else ""
    prefix = before.removeprefix(around)
    # Of other networks in the dictionary what begins with their prefix is theirs.
    others = tuple(each.removeprefix(around) for each in starts if each.startswith(around) and each != around)
    theirs = tuple(each for each in others if each != prefix and not prefix.startswith(each))
    left = {name: each for name, each in own.items() if not name.startswith(theirs)}
    return Candidate(
        place=place,
        prefix=prefix,
        tensors={name.removeprefix(prefix): each for name, each in left.items() if name.startswith(prefix)},
        beside={name: each for name, each in left.items() if not name.startswith(prefix)}
        | _heads_around(dictionaries, place),
    )


def _heads_around(dictionaries: Mapping[str, Tensors], place: str) -> dict[str, torch.Tensor]:
    """Of a file with a dictionary a module, what it calls a head."""
    around = place.rpartition(".")[0]
    heads = {f"{around}.{head}" if around else head: head for head in HEADS}
    return {
        f"{heads[other]}.{name}": each
        for other, tensors in dictionaries.items()
        if other in heads and other != place and place
        for name, each in tensors.items()
    }


def _unwrapped(tensors: Tensors) -> Tensors:
    """Names without the wrappers of frameworks; as they are where two would become one."""
    return _without(tensors, _WRAPPERS) or tensors


def _without(tensors: Tensors, words: frozenset[str]) -> Tensors | None:
    out = {".".join(part for part in name.split(".") if part not in words): each for name, each in tensors.items()}
    return out if len(out) == len(tensors) and "" not in out else None


def unmixed(dictionaries: Mapping[str, Tensors]) -> Iterator[Candidate]:
    """Dictionaries in which names like `backbone.` stand before some parts of the network only: without them."""
    for place, tensors in dictionaries.items():
        plain = None if _is_optimizer(place, tensors) else _without(tensors, _WRAPPERS | _OWNERS)
        if plain is not None and any(anchor in plain for anchor in _ANCHORS):
            yield Candidate(place=place, prefix="", tensors=plain, renamed=True)


def preferred(fitting: list[Candidate]) -> Candidate | None:
    """What the code that writes such a file takes of it; None where that is not known."""
    return next((each for each in fitting if all(each is other or _before(each, other) for other in fitting)), None)


def _before(one: Candidate, other: Candidate) -> bool:
    mine, theirs = set(one.words), set(other.words)
    for first, second in _PREFERRED:
        if first in mine - theirs and second in theirs - mine:
            return True
        if second in mine - theirs and first in theirs - mine:
            return False
    return is_averaged(one) and not is_averaged(other)


def is_averaged(candidate: Candidate) -> bool:
    return any(part in _AVERAGED for word in candidate.words for part in word.lower().split("_"))
