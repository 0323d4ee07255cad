"""`doctor`: what a build or a run could use on this machine, and what is missing for the rest.

Every backend is tried, in a process of its own: a library that is installed may still fail to load, kill its process,
or print its reasons where nobody reads them.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ropevit_export.errors import BackendError, RopevitError, with_kind
from ropevit_export.machine import hardware
from ropevit_export.machine.worker import Channel, WorkerDiedError, ask_each

_SECONDS = 120
_GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
tried (float[1,4] x) => (float[1,4] y) { y = Relu(x) }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A package, by the names that it is published under, what it is for, and how to get it.

    `alone`: packages of these names overwrite each other's files.
    """

    names: tuple[str, ...]
    serves: str
    install: str
    alone: bool = False


_OURS = "pip install --force-reinstall ropevit-export"
PACKAGES = (
    Wanted(names=("torch",), serves="the reference", install=_OURS),
    Wanted(names=("timm",), serves="the reference", install=_OURS),
    Wanted(names=("onnx",), serves="graphs", install=_OURS),
    Wanted(names=("onnxsim",), serves="graphs", install=_OURS),
    Wanted(
        names=("onnxruntime-gpu", "onnxruntime", "onnxruntime-openvino", "onnxruntime-directml"),
        serves="parity, running",
        install=_OURS,
        alone=True,
    ),
    Wanted(
        names=tuple(f"onnxruntime-ep-nv-tensorrt-rtx{cuda}" for cuda in ("", "-cu13", "-cu12")),
        serves="running",
        install="pip install onnxruntime-ep-nv-tensorrt-rtx",
    ),
    Wanted(names=("openvino",), serves="running", install="pip install 'ropevit-export[openvino]'"),
    Wanted(
        names=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
        serves="building and running engines",
        install="pip install tensorrt-rtx-cu13",
    ),
    Wanted(
        names=("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
        serves="building and running engines",
        install="pip install 'ropevit-export[tensorrt]'",
    ),
    Wanted(names=("cuda-bindings",), serves="running engines", install="pip install cuda-bindings"),
    Wanted(
        names=("nvidia-modelopt",), serves="a peer of 8-bit graphs", install="pip install 'ropevit-export[quant]'"
    ),
    Wanted(names=("ray",), serves="many machines", install="pip install ray"),
    Wanted(names=("matplotlib",), serves="bench --plot", install="pip install 'ropevit-export[plot]'"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """`versions` of what is installed, by name."""

    wanted: Wanted
    versions: dict[str, str]

    @property
    def remedy(self) -> str:
        if not self.versions:
            return self.wanted.install
        return "uninstall all, then install one" if self.wanted.alone and len(self.versions) > 1 else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """`does`: "reference", "runs", "builds", "draws". `says`: what it is and runs on, or why not and what helps."""

    name: str
    does: str
    usable: bool
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """`no_gpu`: why there is none, else empty."""

    machine: dict[str, object]
    no_gpu: str
    packages: tuple[Package, ...]
    backends: tuple[Backend, ...]

    def require_export(self) -> None:
        """Raise BackendError where not even a graph can be made: it takes PyTorch and ONNX Runtime's CPU provider."""
        needed = (("reference", "pytorch"), ("runs", "onnxruntime"))
        broken = [each for each in self.backends if (each.does, each.name) in needed and not each.usable]
        if broken:
            raise BackendError(
                f"nothing can be exported here: {'; '.join(f'{each.name}: {each.says}' for each in broken)}"
            )


def diagnose(progress: Callable[[str], None] = lambda stage: None) -> Diagnosis:
    """Try everything; takes as long as importing PyTorch. Never raises for what is missing or broken."""
    _, no_gpu = hardware.gpus()
    backends = tried(trials(), progress)
    return Diagnosis(machine=hardware.facts(), no_gpu=no_gpu, packages=packages(), backends=backends)


def trials() -> list[tuple[str, str]]:
    """(what a backend would do, its name)"""
    try:
        from ropevit_export.backends.select import BUILDERS, RUNNERS
    except Exception:  # numpy or onnx is broken: the trials of what every export needs will tell
        return [("reference", "pytorch"), ("runs", "onnxruntime")]
    return [
        ("reference", "pytorch"),
        *(("runs", name) for name in RUNNERS),
        *(("builds", name) for name in BUILDERS),
        ("draws", "matplotlib"),
    ]


def packages() -> tuple[Package, ...]:
    return tuple(
        Package(wanted=wanted, versions={name: found for name in wanted.names if (found := _version(name))})
        for wanted in PACKAGES
    )


def _version(name: str) -> str | None:
    with suppress(Exception):  # also a package whose metadata is damaged
        return importlib.metadata.version(name)
    return None


def tried(
    trials: Sequence[tuple[str, str]], progress: Callable[[str], None] = lambda stage: None
) -> tuple[Backend, ...]:
    """Trials, each in a process of its own, as many at once as there are cores."""
    found = []
    with closing(ask_each(_answer, trials, seconds=_SECONDS, at_once=hardware.cores() or 2)) as answers:
        for (does, name), said in zip(trials, answers, strict=True):
            if isinstance(said, WorkerDiedError):
                usable, says = False, f"its process ended {said}"
            elif isinstance(said, TimeoutError):
                usable, says = False, f"{said}."
            else:
                usable, says = said
            found.append(Backend(name=name, does=does, usable=usable, says=says))
            progress(name)
    return tuple(found)


def _answer(channel: Channel, does: str, name: str) -> None:
    """In a process of its own: try one backend, and say (usable, sentence)."""
    attempts: dict[str, Callable[[str], str]] = {
        "reference": _reference,
        "runs": _runs,
        "builds": _builds,
        "draws": _draws,
    }
    try:
        channel.say((True, attempts[does](name)))
    except RopevitError as error:
        channel.say((False, str(error)))
    except Exception as error:  # of a broken library, anything
        channel.say((False, with_kind(error)))


def _reference(name: str) -> str:
    from ropevit_export.models import reference

    return reference.describe()


def _runs(name: str) -> str:
    """A graph of one node, run. An engine can't be made here in no time: that its GPU answers has to do."""
    import numpy as np
    import onnx_ir as ir

    from ropevit_export.backends import openvino
    from ropevit_export.backends.engine_runner import LIBRARIES, Device, library
    from ropevit_export.backends.select import runner

    if name in LIBRARIES:
        version, gpu = library(name).__version__, Device()
        return f"{LIBRARIES[name].name} {version}, {gpu.name}, SM {gpu.target}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tried.onnx"
        ir.save(ir.from_onnx_text(_GRAPH), path)
        session = runner(name, path, "fp32")
        found = session.run({"x": np.array([[-1, 0, 1, 2]], np.float32)})["y"]
    if found.tolist() != [[0, 0, 1, 2]]:
        raise BackendError(f"{session.describe} computes wrong: {found.tolist()} for max(0, [-1, 0, 1, 2])")
    return f"{session.describe}; devices: {', '.join(openvino.devices())}" if name == "openvino" else session.describe


def _builds(name: str) -> str:
    from ropevit_export.backends.select import BUILDERS

    maker = BUILDERS[name]()
    return f"{maker.version}{', for SM ' if maker.all_targets else ''}{', '.join(maker.all_targets)}"


def _draws(name: str) -> str:
    from ropevit_export.verbs import plot

    plot.check(Path("benchmark.png"))
    return "pictures of benchmarks"


def summary(facts: dict[str, object]) -> Sequence[tuple[str, str]]:
    """The machine in words."""
    features = facts["cpu_features"]
    assert isinstance(features, list)
    memory = facts["memory_mb"]
    return (
        ("system", str(facts["system"])),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("processor", f"{facts.get('model_name') or facts['processor'] or 'unknown'}, {facts['cores']} cores"),
        ("instructions", ", ".join(features) or "unknown"),
        ("memory", f"{memory / 1024:.0f} GiB" if isinstance(memory, int) else "unknown"),
    )
