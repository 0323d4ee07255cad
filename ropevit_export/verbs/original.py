"""The model that a bundle was made from, in PyTorch, with the bundle's own weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ropevit_export.bundle import manifest
from ropevit_export.errors import InputError
from ropevit_export.models.spec import ModelSpec
from ropevit_export.models.zoo import find_model
from ropevit_export.request import Request
from ropevit_export.values import Resolution

if TYPE_CHECKING:
    from ropevit_export.values import Array, FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Original:
    """The unfolded model at one size. `images` (B, 3, H, W), normalised."""

    spec: ModelSpec
    model: Any

    def run(self, images: FloatArray) -> dict[str, FloatArray]:
        """Answers by output."""
        from ropevit_export.models import reference

        answers = reference.batch_runner(self.model, compiled=False)(images)
        return {output.name: answer for output, answer in zip(self.model.outputs, answers, strict=True)}

    def block_values(self, images: FloatArray) -> dict[str, Array]:
        from ropevit_export.models import reference

        return reference.block_values(self.model, self.spec, images)


def reference_of(listed: manifest.Manifest, size: Resolution, weights: str | None = None) -> Original:
    """Weights from where the manifest says, or from `weights`, a path or "random".

    Raises InputError where they are not the bundle's, by their SHA-256.
    """
    from ropevit_export.checkpoint import source
    from ropevit_export.models import filed, reference
    from ropevit_export.models.initial import random_checkpoint
    from ropevit_export.models.resize import resize

    spec, entry = find_model(listed.model), listed.weights
    is_random, is_file = entry.source == "random", entry.revision is None and "/" not in entry.source
    if weights is None and is_file and not is_random:
        raise InputError(
            f"the bundle was made from the file {entry.source}, SHA-256 {entry.sha256[:12]}…: "
            f"give it with --weights PATH/{entry.source}."
        )
    where = weights or ("random" if is_random else "pretrained")
    revision = entry.revision if where == "pretrained" and not spec.packaged else None
    request = Request(model=spec, resolutions=(size,), weights=where, revision=revision)
    checkpoint = source.load(request, lambda: random_checkpoint(spec, entry.seed or 0))
    if checkpoint.sha256 != entry.sha256:
        raise InputError(
            f"the bundle was made from weights {entry.sha256[:12]}… ({entry.source}), found {checkpoint.sha256[:12]}… "
            f"({checkpoint.source}): give the file with --weights PATH."
        )
    noted = listed.request or {}
    if asked := noted.get("window"):
        rows, columns = map(int, asked.split(","))
        spec = replace(spec, own_window=(rows, columns))
    given = filed.Given(key=noted.get("weights_key") or None, sizes=(size,), published=is_random or not is_file)
    spec, adopted = filed.read(spec, checkpoint, given)
    sized = resize(spec, adopted, size)
    outputs = [entry.value() for entry in listed.artifacts[0].outputs]
    return Original(spec=spec, model=reference.build(spec, sized, size, outputs))
