"""The tests' own store of traces: what it gives is what torch gives, and it tells modules apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from ropevit_export import passes
from ropevit_export.models.spec import ModelSpec
from ropevit_export.trace.export import FORMS
from ropevit_export.trace.positions import TableBank
from ropevit_export.values import Dim, Graph, IoSpec
from tests import traces
from tests.conftest import Case

Make = Callable[..., Case]


def parts(case: Case, **io: Any) -> tuple[torch.nn.Module, ModelSpec, IoSpec]:
    """What `trace` hands on, made anew."""
    wanted = case.io(**io)
    return FORMS[case.spec.family](case.spec, case.sized, TableBank(case.tables), wanted), case.spec, wanted


def finished(graph: Graph) -> bytes:
    return ir.to_proto(passes.run(graph).model).SerializeToString(deterministic=True)


def test_what_is_kept_is_what_torch_gives(case: Make, tmp_path: Path) -> None:
    once = traces.once(tmp_path)
    fresh, kept = (finished(once(*parts(case("rope_mixed_deit_small", "64")))) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1
    assert fresh == kept


def test_a_module_with_another_number_or_switch_is_another(case: Make) -> None:
    each = case("rope_mixed_deit_small", "64")
    assert traces.fingerprint(*parts(each)) == traces.fingerprint(*parts(each))
    others = [parts(each, batch=Dim(min=1, opt=1, max=2)), *(parts(each) for _ in range(3))]
    changed: list[Any] = [module for module, *_ in others]
    changed[1].blocks[1].norm2.eps *= 2
    changed[2].blocks[1].mlp.fc2.bias = changed[2].blocks[1].mlp.fc2.bias.clone()
    changed[2].blocks[1].mlp.fc2.bias[-1] += 1
    changed[3].blocks[0].attention.heads *= 2
    assert len({traces.fingerprint(*each) for each in (parts(each), *others)}) == 1 + len(others)
