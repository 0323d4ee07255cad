"""Nothing in a file runs, in any nesting, format or suffix, and nothing of it changes how the next file is read."""

from __future__ import annotations

import builtins
import contextlib
import copy
import copyreg
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropevit_export import cli
from ropevit_export.checkpoint import file, torch_file, unpickle
from ropevit_export.checkpoint.contents import contents
from ropevit_export.errors import CheckpointError
from tests.tiny import state

MARKER = "marker-of-code-that-ran"


class Call:
    """Pickled, it calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


class Chain:
    """Calls what another call gives."""

    def __init__(self, maker: Call, *args: Any) -> None:
        self.maker, self.args = maker, args

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.maker, self.args)


def payloads(marker: Path) -> dict[str, object]:
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(builtins.eval, write),
        "exec": Call(builtins.exec, write),
        "open": Call(builtins.open, str(marker), "w"),
        "subprocess": Call(subprocess.Popen, ["touch", str(marker)]),
        "Path.touch": Call(Path.touch, marker),
        "__import__": Call(builtins.__import__, "antigravity"),
        "pickle.loads": Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
        "torch.load": Call(torch.load, str(marker)),
    }


PAYLOADS = sorted(payloads(Path("x")))


@pytest.mark.parametrize("name", [name for name in PAYLOADS if name not in ("__import__", "torch.load", "subprocess")])
@pytest.mark.filterwarnings("ignore")  # the payload `open` closes nothing
def test_each_payload_runs_where_it_is_unpickled(tmp_path: Path, name: str) -> None:
    pickle.loads(pickle.dumps(payloads(tmp_path / MARKER)[name]))
    assert (tmp_path / MARKER).exists()


def nestings(payload: object) -> dict[str, object]:
    weights = state()
    return {
        "alone": payload,
        "beside": {"model": weights, "args": payload},
        "deep": {"state_dict": weights, "callbacks": [{"a": ({"b": [payload]},)}]},
        "a weight": {"model": weights | {"norm.weight": payload}},
        "a key": {"model": weights, "names": {(payload, 1): 2}},
        "a list": [weights, payload],
        "ordered": OrderedDict(model=weights, other=OrderedDict(x=payload)),
    }


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("nesting", sorted(nestings(None)))
def test_no_payload_runs_in_any_nesting_or_format(tmp_path: Path, name: str, nesting: str) -> None:
    marker = tmp_path / MARKER
    content = nestings(payloads(marker)[name])[nesting]
    modules = set(sys.modules)
    for number, path in enumerate(written(tmp_path, content)):
        if name == "torch.load":  # of no standard library: a thing of a class that is not looked up
            _quietly(path)
        else:
            with pytest.raises(
                CheckpointError, match="it calls .*, as files do that run code .* Nothing of it was run"
            ):
                file.read(path)
        assert not marker.exists(), (name, nesting, number)
    assert "antigravity" not in set(sys.modules) - modules


def _quietly(path: Path) -> None:
    with contextlib.suppress(CheckpointError):
        file.read(path)


def written(folder: Path, content: object) -> list[Path]:
    """In every format."""
    out = []
    for protocol in (2, 4):
        for legacy in (False, True):
            out.append(folder / f"{protocol}-{legacy}.pth")
            torch.save(content, out[-1], pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        out.append(folder / f"{protocol}.pkl")
        out[-1].write_bytes(pickle.dumps(content, protocol))
    return out


@pytest.mark.parametrize(
    "name",
    ["x.pth", "x.pt", "x.bin", "x.ckpt", "x.th", "x.pth.tar", "x.tar", "x.safetensors", "x.index.json", "x.npz", "x"],
)
def test_no_payload_runs_under_any_suffix(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / MARKER
    for number, each in enumerate(written(tmp_path, {"model": state(), "x": payloads(marker)["os.system"]})):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        each.rename(path)
        arguments = ["--model", "rope_mixed_deit_small", "--res", "224", "--engine", "none", "-q", "--weights"]
        for given in (path, path.parent):
            assert cli.run([*arguments, str(given), "--out", str(tmp_path / "out")]) == 1
            assert capsys.readouterr().err.count("\n") == 1
        assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_what_a_call_gives_is_not_called(tmp_path: Path) -> None:
    """getattr(Path, "touch")(marker): both are harmless names, together they are not."""
    marker = tmp_path / MARKER
    program = (
        b"\x80\x02cbuiltins\ngetattr\ncpathlib\nPath\nX\x05\x00\x00\x00touch\x86R"
        + b"cpathlib\nPath\nX"
        + struct.pack("<I", len(str(marker)))
        + str(marker).encode()
        + b"\x85R\x85R."
    )
    pickle.loads(program)
    assert marker.exists()
    marker.unlink()
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match=r"it calls what builtins\.getattr gives"):
        file.read(tmp_path / "x.pkl")
    assert not marker.exists()


@pytest.mark.parametrize("part", ["magic", "version", "machine", "keys"])
def test_every_pickle_of_the_old_format_is_read_alike(tmp_path: Path, part: str) -> None:
    marker = tmp_path / MARKER
    torch.save({"model": state()}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pth").read_bytes()
    stream, ends = io.BytesIO(whole), []
    for _ in range(5):
        for opcode, _, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                ends.append(stream.tell())
                break
    at = ["magic", "version", "machine", "object", "keys"].index(part)
    evil = pickle.dumps(payloads(marker)["os.system"], 2)
    (tmp_path / "x.pth").write_bytes(whole[: ([0, *ends])[at]] + evil + whole[ends[at] :])
    with pytest.raises(CheckpointError, match=r"it calls (posix|nt|os)\.system"):
        file.read(tmp_path / "x.pth")
    assert not marker.exists()


def test_a_pickle_within_a_bare_pickle_is_read_alike(tmp_path: Path) -> None:
    marker = tmp_path / MARKER
    inner = pickle.dumps(payloads(marker)["os.system"], 2)
    load = torch.storage._load_from_bytes
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"w": Call(load, inner)}}))
    with pytest.raises(CheckpointError, match=r"it calls (posix|nt|os)\.system"):
        file.read(tmp_path / "x.pkl")
    assert not marker.exists()


def test_torchscript_is_not_loaded_whatever_it_is_called(tmp_path: Path) -> None:
    module = torch.jit.script(torch.nn.Linear(2, 2))
    for name in ("x.pth", "x.safetensors", "x"):
        module.save(str(tmp_path / name))
        with pytest.raises(CheckpointError, match="TorchScript program"):
            file.read(tmp_path / name)
    torch.save({"model": state()}, tmp_path / "both.pth")
    with zipfile.ZipFile(tmp_path / "both.pth", "a") as archive:
        archive.writestr("constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        file.read(tmp_path / "both.pth")


# Opcodes that give an object on the stack a state: {"items": 3} as its attributes, in both forms that pickle knows.
_STATE = b"}X\x05\x00\x00\x00itemsK\x03s"
_BUILDS = {"attributes": _STATE + b"b", "slots": b"N" + _STATE + b"\x86b"}


@pytest.mark.parametrize("how", sorted(_BUILDS))
@pytest.mark.parametrize(
    "name",
    [
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "argparse Namespace",
        "builtins list",
        "torch float32",
        "numpy.core.multiarray _reconstruct",
        "torch FloatStorage",
        "some.package Config",
    ],
)
def test_no_file_changes_what_the_next_one_is_read_by(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + _BUILDS[how] + b".")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        file.read(tmp_path / "x.pkl")
    assert not isinstance(vars(unpickle.Dictionary).get("items"), int)
    torch.save(OrderedDict(state()), tmp_path / "y.pth")
    assert file.read(tmp_path / "y.pth").tensors.keys() == state().keys()


def test_attributes_of_a_dictionary_do_not_hide_its_methods(tmp_path: Path) -> None:
    tensors: Any = OrderedDict(state())
    tensors._metadata = OrderedDict()
    tensors.values = tensors.get = 3
    torch.save(tensors, tmp_path / "x.pth")
    assert file.read(tmp_path / "x.pth").tensors.keys() == state().keys()


def test_registered_extensions_of_pickle_are_not_believed(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02\x82\xf0X\x04\x00\x00\x00true\x85R.")
        with pytest.raises(CheckpointError):
            file.read(tmp_path / "x.pkl")
    finally:
        copyreg.remove_extension("os", "system", 240)
        copyreg.clear_extension_cache()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (4,), (1,)),
        (2, (2,), (1,)),
        (0, (2, 2), (2, 2)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (3,), (-1,)),
        (0, (1, 1), (1,)),
    ],
)
def test_a_tensor_stays_within_its_storage(tmp_path: Path, offset: int, size: Any, stride: Any) -> None:
    class Typed:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(3).untyped_storage(), dtype=torch.float32,
                                                 _internal=True)  # fmt: skip
            return torch._utils._rebuild_tensor, (storage, offset, size, stride)

    for legacy in (False, True):
        torch.save({"w": Typed()}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            file.read(tmp_path / "x.pth")


def test_containers_that_hold_themselves_or_grow_without_end_are_read_once(tmp_path: Path) -> None:
    itself: dict[str, Any] = {"model": state()}
    itself["again"] = [itself]
    doubled: Any = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    for content in (itself, {"model": state(), "x": doubled}):
        torch.save(content, tmp_path / "x.pth")
        assert file.read(tmp_path / "x.pth").dictionaries["model"].keys() == state().keys()
    program = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    (tmp_path / "deep.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        file.read(tmp_path / "deep.pkl")


@pytest.mark.parametrize(
    "program", [b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02.", b"\x80\x02K\x01K\x02\x86R.", b"\x80\x09N."]
)
def test_broken_pickles_are_damaged(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        file.read(tmp_path / "x.pkl")


def twice(times: int, thing: bytes) -> bytes:
    """Opcodes of a thing that holds another twice, which holds another twice … `thing` holds two: a tuple or a list."""
    grown = (b"0h" + bytes([at]) + b"h" + bytes([at]) + thing + b"q" + bytes([at + 1]) for at in range(times))
    return b")q\x00" + b"".join(grown)


TUPLE2 = b"\x86"
# A call's list that gets a thing once the call's arguments are made: frozenset(*[thing]).
LATE = (
    twice(60, TUPLE2) + b"0]q\xf00ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nfrozenset\nNh\xf0th\xf0h\x3ca0R."
)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"Nr\xff\xff\xff\xff.", "keeps a thing under the number 4294967295"),
        (b"Np 4_000_000_000\n.", "keeps a thing under the number 4000000000"),
        (b"B\xff\xff\xff\xffx.", "is said to have 4294967295 bytes"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", "is said to have 1099511627776 bytes"),
        (b"\x95" + struct.pack("<Q", 2**40) + b"N.", "is said to have 1099511627776 bytes"),
        (b"}" + twice(60, TUPLE2) + b"Ns.", "name the same things over and over"),
        (b"}(" + twice(60, TUPLE2) + b"Nu.", "name the same things over and over"),
        (b"(" + twice(60, TUPLE2) + b"Nd.", "name the same things over and over"),
        (b"\x8f(" + twice(60, TUPLE2) + b"\x90.", "name the same things over and over"),
        (b"(" + twice(60, TUPLE2) + b"\x91.", "name the same things over and over"),
        (b"cbuiltins\nset\n(" + twice(60, TUPLE2) + b"l\x85R.", "name the same things over and over"),
        (b"cbuiltins\nset\n" + b"](" + twice(60, TUPLE2) + b"e\x85R.", "name the same things over and over"),
        (b"(" + twice(60, TUPLE2) + b"ibuiltins\nset\n.", "name the same things over and over"),
        (b"(cbuiltins\nset\n" + twice(60, TUPLE2) + b"o.", "name the same things over and over"),
        (b"cbuiltins\nset\n" + twice(60, TUPLE2) + b"\x81.", "name the same things over and over"),
        (twice(60, TUPLE2) + b"Q.", "name the same things over and over"),
        (LATE, "name the same things over and over"),
        (b"g 0\n0})" + b"\x85" * 200_000 + b"Ns.", "truncated or damaged"),
        (b"Np0\n0})" + b"\x85" * 200_000 + b"Ns.", "more than 1000 deep"),
        (b"Np0\ng 0\n0})" + b"\x85" * 200_000 + b"Ns.", "more than 1000 deep"),
    ],
)  # fmt: skip
def test_a_few_bytes_do_not_stand_for_gigabytes_or_hours(tmp_path: Path, program: bytes, reason: str) -> None:
    """Each ended the process, or took all of its memory or time, where the machine ran it."""
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + program)
    with pytest.raises(CheckpointError, match=reason):
        file.read(tmp_path / "x.pkl")


def test_arrays_and_tensors_that_are_named_again_and_again_are_bounded(tmp_path: Path) -> None:
    array, wide = np.ones(1 << 18, np.float32), torch.ones(1).expand(1 << 12, 1 << 12)
    for content in ({str(at): array for at in range(1000)}, {str(at): wide for at in range(3)}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"bytes stand for tensors of \d+ and more"):
            file.read(tmp_path / "x.pth")
    torch.save({str(at): array for at in range(9)} | {"wide": wide[:, :1000]}, tmp_path / "x.pth")
    found = file.read(tmp_path / "x.pth").tensors
    assert len({found[str(at)].data_ptr() for at in range(9)}) == 1


def test_parts_of_an_archive_that_lie_over_one_another_are_damaged(tmp_path: Path) -> None:
    """A directory of a few kilobytes would have megabytes read again for each of its lines."""
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += [copy.copy(archive.getinfo("x/data/0")) for _ in range(3)]
        archive._didModify = True  # type: ignore[attr-defined] # so that the directory is written
    with pytest.raises(CheckpointError, match="its parts lie over one another"):
        file.read(path)


def test_numbers_of_a_tensor_and_names_of_storages_are_no_lists() -> None:
    """Lists that hold one another would be compared, or written into a message, without end."""
    storage = unpickle.Storage(torch.UntypedStorage(16), torch.float32)
    assert unpickle._tensor(storage, 0, (4,), (1,)) is not None
    for offset, size, stride in (([1], ([2],), ([3],)), (0, ([4],), (1,)), (0, (4,), (-1,))):
        with pytest.raises(pickle.UnpicklingError, match="not as many whole numbers"):
            unpickle._tensor(storage, offset, size, stride)  # type: ignore[arg-type]
    assert torch_file._storage_id(("storage", torch.float32, "0", "cpu", 4)) == (torch.float32, "0", 4)
    with pytest.raises(pickle.UnpicklingError, match="a storage has a list for a name"):
        torch_file._storage_id(("storage", torch.float32, ["0"], "cpu", 4))


@pytest.mark.parametrize(("length", "found"), [(500, True), (501, False)])
def test_places_of_so_many_characters_are_not_looked_at(length: int, found: bool) -> None:
    """Every container below would have the long name in its own place."""
    assert bool(contents({"x" * length: {"weight": torch.ones(1)}}, 1000).dictionaries) == found
