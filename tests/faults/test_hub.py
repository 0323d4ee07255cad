"""What the hub does to an export that takes weights from it: an older bundle outlives it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as theirs
import pytest
from safetensors.torch import save

from ropevit_export import cli
from ropevit_export.models import zoo
from ropevit_export.models.initial import random_checkpoint
from ropevit_export.models.spec import HubFile
from tests.fake_hub import MOST_REQUESTS, FakeHub, Serving
from tests.faults.conftest import TINY, content, expect
from tests.faults.table import HUB, Row, rows

FILE = ("timm/tiny", "model.safetensors")
MODEL = dataclasses.replace(
    zoo.find_model("shallow_rope_mixed_deit_digits"),
    name="hub_tiny",
    short="hub_tiny",
    hub=(HubFile(repo=FILE[0], filename=FILE[1]),),
)
BODY, OTHER = (save(dict(random_checkpoint(MODEL, seed=seed).dictionaries[""])) for seed in (0, 9))
EXPORT = ("--model", "hub_tiny", "--force", "--out", "out", *TINY[2:-1], "pretrained")
TENTHS = [len(BODY) * tenth // 10 for tenth in range(10)]

HOW: dict[str, dict[str, Any]] = {
    "the hub is slow": {"pause": 0.02},
    "the hub stops within the file": {"stops": True},
    "the hub does not answer": {"silent": True},
    "the connection breaks each time": {"cut": TENTHS[5], "cuts": MOST_REQUESTS},
    "the hub wants a licence to be accepted": {"head": 401, "code": "GatedRepo"},
    "the token's account has not accepted the licence": {"head": 403, "code": "GatedRepo"},
    "the hub has no such file": {"head": 404, "code": "EntryNotFound"},
    "the hub has had too many requests": {"head": 429},
    "the hub has had too many requests once the file is asked for": {"get": 429},
    **{f"the hub answers {status}": {"head": status} for status in (500, 502, 503, 504)},
}


@pytest.fixture
def elsewhere() -> Iterator[FakeHub]:
    """A second host."""
    with Serving() as server:
        yield server


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """One that this process asks, with an empty cache and a token, and without waits between attempts."""
    with Serving() as server:
        monkeypatch.setattr(theirs, "ENDPOINT", server.url)
        address = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(theirs, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(theirs, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in {"OFFLINE": False, "DISABLE_XET": True, "DOWNLOAD_TIMEOUT": 1, "ETAG_TIMEOUT": 1}.items():
            monkeypatch.setattr(theirs, f"HF_HUB_{name}", value)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setitem(zoo._BY_NAME, "hub_tiny", MODEL)
        yield server


def serve(hub: FakeHub, elsewhere: FakeHub, fault: str) -> None:
    far = elsewhere.url.replace("127.0.0.1", "localhost")
    if fault == "a file with another hash":
        hub.add(FILE, OTHER, BODY)
    elif fault == "a redirect to another host":
        hub.add(FILE, BODY, elsewhere=far)
        elsewhere.add(FILE, BODY)
    elif fault == "a redirect to another host with another file":
        hub.add(FILE, BODY, elsewhere=far)
        elsewhere.add(FILE, OTHER)
    else:
        hub.add(FILE, BODY, **HOW[fault])


@pytest.mark.usefixtures("_stages_once")
@pytest.mark.parametrize("row", rows(HUB, lambda fault: "tenth" not in fault))
def test_the_older_bundle_outlives_the_hub(
    row: Row, hub: FakeHub, elsewhere: FakeHub, place: Path, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(hub, elsewhere, row.fault)
    capsys.readouterr()
    code = cli.run(EXPORT)
    expect(row, place, older, code, capsys.readouterr().err)
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert set(elsewhere.tokens) <= {None}  # a token is for the hub alone


@pytest.mark.usefixtures("_stages_once")
@pytest.mark.parametrize("row", rows(HUB, lambda fault: "tenth" in fault))
def test_a_connection_that_breaks_at_a_tenth_is_continued_there(
    row: Row, hub: FakeHub, place: Path, older: Path, capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for cut in TENTHS:
        monkeypatch.setattr(theirs, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        hub.seen.clear()
        hub.add(FILE, BODY, cut=cut, cuts=1)
        capsys.readouterr()
        code = cli.run(EXPORT)
        expect(row, place, older, code, capsys.readouterr().err)
        assert sum(each.startswith("GET") for each in hub.seen) == 2
        (place / "out" / "manifest.json").write_bytes(content(older)["manifest.json"])
