"""Weights from the hub: the real client, in a process of its own, against a small server on the loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from tests import hub_child
from tests.fake_hub import COMMIT, MOST_REQUESTS, OLDER, FakeHub, Pair, Serving, Upload

Outcome = dict[str, Any]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with Serving() as server:
        yield server


@dataclass(frozen=True)
class Result:
    """What the child made of one step: the checkpoint or the error, and the files its cache then held."""

    outcome: Outcome
    seconds: float
    kept: list[str] = field(repr=False)


def run(home: Path, url: str, *steps: Outcome, wait: bool = True, env: dict[str, str] | None = None) -> list[Result]:
    """Run the steps one after the other in a new process whose hub is `url`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    clean |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return [Result(**each) for each in hub_child.run(list(steps), clean | (env or {}), wait=wait, timeout=50)]


def safetensors(value: float = 1.0) -> bytes:
    return save({"weight": torch.full((64,), value)})


def pickled(value: float = 1.0) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": {"weight": torch.full((64,), value)}}, stream)
    return stream.getvalue()


def delivered(file: Pair, body: bytes, value: float = 1.0, commit: str = COMMIT) -> Outcome:
    sha256 = hashlib.sha256(body).hexdigest()
    whole = {"source": "/".join(file), "revision": commit, "sha256": sha256, "trained": True}
    return whole | {"weight": [value] * 64}


def closed_port() -> str:
    """The address of a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


CONVERTED = ("timm/both", "model.safetensors")
OFFICIAL = ("naver-ai/second", "pytorch_model.bin")
NOWHERE = ("timm/nowhere", "model.safetensors")
NO_SUCH_FILE = ("naver-ai/third", "model.safetensors")
BESIDE_IT = ("naver-ai/third", "pytorch_model.bin")


@dataclass(frozen=True)
class FirstRun:
    home: Path
    converted: Result
    after_no_repository: Result
    after_no_file: Result
    bodies: dict[Pair, bytes]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Files of both kinds fetched into an empty cache; the hub is gone afterwards."""
    home = tmp_path_factory.mktemp("hub")
    bodies = {CONVERTED: safetensors(1.0), OFFICIAL: pickled(2.0), BESIDE_IT: pickled(3.0)}
    with Serving() as hub:
        for file, body in bodies.items():
            hub.add(file, body)
        converted, no_repository, no_file = run(
            home,
            hub.url,
            {"files": [CONVERTED, OFFICIAL]},
            {"files": [NOWHERE, OFFICIAL]},
            {"files": [NO_SUCH_FILE, BESIDE_IT]},
        )
    return FirstRun(home, converted, no_repository, no_file, bodies)


def test_a_hub_file_is_recorded_with_its_repository_commit_and_hash(first_run: FirstRun) -> None:
    assert first_run.converted.outcome == delivered(CONVERTED, first_run.bodies[CONVERTED], 1.0)


def test_the_second_file_is_taken_where_the_first_ones_repository_does_not_exist(first_run: FirstRun) -> None:
    assert first_run.after_no_repository.outcome == delivered(OFFICIAL, first_run.bodies[OFFICIAL], 2.0)


def test_the_second_file_is_taken_where_the_first_ones_repository_lacks_it(first_run: FirstRun) -> None:
    assert first_run.after_no_file.outcome == delivered(BESIDE_IT, first_run.bodies[BESIDE_IT], 3.0)


@dataclass(frozen=True)
class Offline:
    """Steps of a process that can't reach the hub."""

    converted: Result
    official: Result
    unknown: Result
    unknown_auto: Result
    unknown_pretrained: Result


@pytest.fixture(scope="module", params=["no route", "HF_HUB_OFFLINE"])
def offline(request: pytest.FixtureRequest, first_run: FirstRun) -> Offline:
    results = run(
        first_run.home,
        closed_port(),
        {"files": [CONVERTED, OFFICIAL]},
        {"files": [NOWHERE, OFFICIAL]},
        {"files": [NOWHERE]},
        {"files": [NOWHERE], "weights": "auto"},
        {"files": [NOWHERE], "weights": "pretrained"},
        env={"HF_HUB_OFFLINE": "1"} if request.param == "HF_HUB_OFFLINE" else {},
    )
    return Offline(*results)


def test_a_second_run_needs_no_hub(offline: Offline, first_run: FirstRun) -> None:
    assert offline.converted.outcome == first_run.converted.outcome


def test_a_second_run_needs_no_hub_where_only_the_second_file_exists(offline: Offline, first_run: FirstRun) -> None:
    assert offline.official.outcome == first_run.after_no_repository.outcome


def test_without_a_hub_and_a_cached_copy_the_hub_is_said_to_be_unreachable(offline: Offline) -> None:
    assert offline.unknown.outcome["error"] == "HubUnreachableError"
    assert re.search(
        r"^no connection to the hub for timm/nowhere/model\.safetensors \(.+\), and no cached copy\.$"
        r"|^HF_HUB_OFFLINE is set and timm/nowhere/model\.safetensors is not cached\.$",
        offline.unknown.outcome["text"],
    )


def test_an_unreachable_hub_is_noticed_at_once(offline: Offline) -> None:
    assert offline.unknown.seconds < 3


def test_auto_takes_random_weights_without_a_hub(offline: Offline) -> None:
    assert offline.unknown_auto.outcome["source"] == "random"
    assert offline.unknown_auto.outcome["trained"] is False


def test_pretrained_does_not_take_random_weights_without_a_hub(offline: Offline) -> None:
    assert offline.unknown_pretrained.outcome["error"] == "CheckpointError"
    assert "--weights pretrained needs a connection, or give a file." in offline.unknown_pretrained.outcome["text"]


def test_a_hub_that_does_not_answer_is_unreachable(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(CONVERTED, safetensors(), silent=True)
    [result] = run(tmp_path, hub.url, {"files": [CONVERTED]}, env={"HF_HUB_ETAG_TIMEOUT": "1"})
    assert result.outcome["error"] == "HubUnreachableError"
    assert result.outcome["text"].startswith("no connection to the hub for timm/both/model.safetensors")


def test_a_revision_is_the_commit_it_names(hub: FakeHub, tmp_path: Path) -> None:
    newer, older = safetensors(2.0), safetensors(1.0)
    hub.add(CONVERTED, newer)
    hub.add(CONVERTED, older, commit=OLDER)
    pinned = [{"files": [CONVERTED], "revision": name} for name in ("v1", COMMIT, "v1", "v9")]
    at_tag, at_commit, again, unknown = (result.outcome for result in run(tmp_path, hub.url, *pinned))
    assert at_commit == delivered(CONVERTED, newer, 2.0)
    assert at_tag == again == delivered(CONVERTED, older, 1.0, commit=OLDER)
    assert unknown["text"].startswith("the hub has no timm/both/model.safetensors at revision v9: ")


def test_files_that_the_hub_lacks_are_all_named_and_not_replaced_by_random_weights(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.add(BESIDE_IT, pickled())
    files = [NOWHERE, NO_SUCH_FILE]
    results = run(tmp_path, hub.url, *({"files": files, "weights": each} for each in (None, "auto", "pretrained")))
    expected = {
        "error": "CheckpointError",
        "text": "the hub has no timm/nowhere/model.safetensors or naver-ai/third/model.safetensors: "
        "give a local file with --weights PATH.",
    }
    assert [result.outcome for result in results] == [expected] * 3


def test_a_connection_that_breaks_once_is_continued_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    body = safetensors()
    hub.add(CONVERTED, body, cut=128, cuts=1)
    [result] = run(tmp_path, hub.url, {"files": [CONVERTED]}, wait=False)
    assert result.outcome == delivered(CONVERTED, body)
    assert [each for each in hub.seen if each.startswith("GET")] == ["GET whole", "GET bytes=128-"]


def test_a_file_that_never_arrives_whole_is_an_error_and_leaves_nothing(hub: FakeHub, tmp_path: Path) -> None:
    body = safetensors()
    upload = hub.add(CONVERTED, body, cut=128, cuts=MOST_REQUESTS)
    [broken] = run(tmp_path, hub.url, {"files": [CONVERTED]}, wait=False)
    assert broken.outcome["error"] == "CheckpointError"
    assert broken.outcome["text"].startswith("timm/both/model.safetensors did not arrive whole, the connection broke:")
    assert not set(broken.kept) & {"model.safetensors", upload.sha256}
    upload.cuts = 0
    [again] = run(tmp_path, hub.url, {"files": [CONVERTED]})
    assert again.outcome == delivered(CONVERTED, body)


def test_a_file_with_another_hash_is_refused_and_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    bodies = {CONVERTED: safetensors(), OFFICIAL: pickled()}
    damaged = {CONVERTED: safetensors(2.0), OFFICIAL: bytes(len(bodies[OFFICIAL]))}  # readable, and not
    uploads = {file: hub.add(file, damaged[file], body) for file, body in bodies.items()}
    results = run(tmp_path, hub.url, *({"files": [file]} for file in bodies for _ in range(2)))
    for (file, upload), first, second in zip(uploads.items(), results[::2], results[1::2], strict=True):
        found = hashlib.sha256(damaged[file]).hexdigest()
        assert first.outcome == {
            "error": "CheckpointError",
            "text": f"{'/'.join(file)} has SHA-256 {found[:12]}…, the hub says {upload.sha256[:12]}…: "
            "damaged on its way and removed from the cache. Run again.",
        }
        assert not set(first.kept) & {file[1], upload.sha256}
        assert second.outcome == delivered(file, bodies[file])


def test_a_hub_in_trouble_is_an_error_and_no_reason_for_random_weights(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(CONVERTED, safetensors(), head=500)
    hub.add(OFFICIAL, pickled(), get=500)
    ways = [(file, weights) for file in (CONVERTED, OFFICIAL) for weights in (None, "auto", "pretrained")]
    results = run(tmp_path, hub.url, *({"files": [file], "weights": weights} for file, weights in ways))
    for (file, _), result in zip(ways, results, strict=True):
        assert result.outcome["error"] == "CheckpointError"
        assert result.outcome["text"].startswith(f"the hub answered 500 for {'/'.join(file)}, it is in trouble: ")


# Checkpoints in shards


def shards_of(values: Sequence[float]) -> dict[str, bytes]:
    """An index and its shards by name, a tensor of one value each."""
    names = [f"model-{i:05}-of-{len(values):05}.safetensors" for i in range(1, len(values) + 1)]
    where = {f"part{i}": name for i, name in enumerate(names)}
    files = {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": where}).encode()}
    return files | {
        name: save({f"part{i}": torch.full((64,), value)})
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    }


def add_shards(hub: FakeHub, index: Pair, values: Sequence[float], commit: str = COMMIT) -> list[Upload]:
    folder = index[1].removesuffix("model.safetensors.index.json")
    return [hub.add((index[0], folder + name), body, commit=commit) for name, body in shards_of(values).items()]


def delivered_shards(index: Pair, values: Sequence[float], commit: str = COMMIT) -> Outcome:
    bodies = {name: body for name, body in shards_of(values).items() if not name.endswith(".json")}
    lines = "".join(f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in bodies.items())
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    whole = {"source": "/".join(index), "revision": commit, "sha256": sha256, "trained": True}
    return whole | {f"part{i}": [value] * 64 for i, value in enumerate(values)}


SHARDED = ("facebook/large", "model.safetensors.index.json")
SECOND = ("facebook/large", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("folder", ["", "teacher/"])
def test_an_index_brings_its_shards_and_a_second_run_needs_no_hub(hub: FakeHub, tmp_path: Path, folder: str) -> None:
    index = (SHARDED[0], folder + SHARDED[1])
    add_shards(hub, index, [1.0, 2.0])
    [first] = run(tmp_path, hub.url, {"files": [index]})
    assert first.outcome == delivered_shards(index, [1.0, 2.0])
    [second] = run(tmp_path, closed_port(), {"files": [index]})
    assert second.outcome == first.outcome


def test_shards_are_of_the_commit_that_their_index_is_of(hub: FakeHub, tmp_path: Path) -> None:
    add_shards(hub, SHARDED, [1.0, 2.0])
    add_shards(hub, SHARDED, [3.0, 4.0], commit=OLDER)
    [result] = run(tmp_path, hub.url, {"files": [SHARDED], "revision": "v1"})
    assert result.outcome == delivered_shards(SHARDED, [3.0, 4.0], commit=OLDER)


def test_a_shard_that_the_hub_lacks_is_named(hub: FakeHub, tmp_path: Path) -> None:
    add_shards(hub, SHARDED, [1.0, 2.0])
    del hub.uploads[SHARDED[0], COMMIT][SECOND[1]]
    [result] = run(tmp_path, hub.url, {"files": [SHARDED]})
    assert result.outcome == {
        "error": "CheckpointError",
        "text": "the hub has no facebook/large/model-00002-of-00002.safetensors, which model.safetensors.index.json "
        "lists: give a local file with --weights PATH.",
    }


def test_a_damaged_shard_is_refused_and_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    add_shards(hub, SHARDED, [1.0, 2.0])
    hub.add(SECOND, save({"part1": torch.zeros(64)}), shards_of([1.0, 2.0])[SECOND[1]])
    first, second = run(tmp_path, hub.url, *({"files": [SHARDED]} for _ in range(2)))
    assert first.outcome["error"] == "CheckpointError"
    assert first.outcome["text"].startswith("facebook/large/model-00002-of-00002.safetensors has SHA-256 ")
    assert second.outcome == delivered_shards(SHARDED, [1.0, 2.0])


def test_a_connection_that_breaks_between_two_shards_is_no_reason_for_random_weights(
    hub: FakeHub, tmp_path: Path
) -> None:
    silent = add_shards(hub, SHARDED, [1.0, 2.0])[-1]
    silent.silent = True
    [broken] = run(tmp_path, hub.url, {"files": [SHARDED], "weights": "auto"}, env={"HF_HUB_ETAG_TIMEOUT": "1"})
    assert broken.outcome["error"] == "CheckpointError"
    assert broken.outcome["text"].startswith("facebook/large/model-00002-of-00002.safetensors did not arrive, the ")
    silent.silent = False
    [again] = run(tmp_path, hub.url, {"files": [SHARDED]})
    assert again.outcome == delivered_shards(SHARDED, [1.0, 2.0])


# Gated and private repositories

GATED = ("facebook/gated", "model.safetensors")
NO_TOKEN = (
    "the hub answered 401 for {0}/model.safetensors, no valid token was sent: the repository is {1}; accept its "
    "licence on https://huggingface.co/{0}, then run `hf auth login` (or set HF_TOKEN), "
    "or give a local file with --weights PATH."
)
NO_ACCESS = (
    "the hub answered 403 for {0}/model.safetensors, the token's account or rights don't reach it: the repository is "
    "{1}; accept its licence on https://huggingface.co/{0} with that account, or run `hf auth login` (or set HF_TOKEN) "
    "for a token that may read it, or give a local file with --weights PATH."
)
# status, the hub's code and message, sentence, what the repository is
REFUSALS = [
    (401, "GatedRepo", "", NO_TOKEN, "gated"),
    (401, "", "Invalid credentials in Authorization header", NO_TOKEN, "private or gated"),
    (401, "RepoNotFound", "", NO_TOKEN, "private or gated, or does not exist"),
    (403, "GatedRepo", "", NO_ACCESS, "gated"),
    (403, "", "", NO_ACCESS, "private or gated"),
]


@pytest.mark.parametrize("asked", ["head", "get"])
def test_a_refusal_says_what_to_do_and_is_no_reason_for_random_weights(
    hub: FakeHub, tmp_path: Path, asked: str
) -> None:
    files = [(f"facebook/gated{i}", "model.safetensors") for i in range(len(REFUSALS))]
    for file, (status, code, message, _, _) in zip(files, REFUSALS, strict=True):
        how: dict[str, Any] = {"code": code, "message": message, asked: status}
        hub.add(file, safetensors(), **how)
    ways = [*((file, "auto") for file in files), (files[0], None), (files[0], "pretrained")]
    results = run(tmp_path, hub.url, *({"files": [file], "weights": weights} for file, weights in ways))
    for (file, _), result in zip(ways, results, strict=True):
        *_, sentence, repository = REFUSALS[files.index(file)]
        assert result.outcome == {"error": "HubRefusedError", "text": sentence.format(file[0], repository)}


def test_a_repository_that_the_hub_has_disabled_asks_for_no_licence(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(GATED, safetensors(), head=403, message="Access to this resource is disabled.")
    [result] = run(tmp_path, hub.url, {"files": [GATED]})
    text = "the hub answered 403 for facebook/gated/model.safetensors: give a local file with --weights PATH."
    assert result.outcome == {"error": "CheckpointError", "text": text}


def test_the_second_file_is_taken_where_the_first_one_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(GATED, safetensors(), head=401, code="GatedRepo")
    hub.add(OFFICIAL, pickled(2.0))
    [result] = run(tmp_path, hub.url, {"files": [GATED, OFFICIAL]})
    assert result.outcome == delivered(OFFICIAL, pickled(2.0), 2.0)


def test_of_two_refusals_the_gated_repository_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(NOWHERE, safetensors(), head=401, code="RepoNotFound")  # to who has no token, all that is not public
    hub.add(GATED, safetensors(), head=401, code="GatedRepo")
    [result] = run(tmp_path, hub.url, {"files": [NOWHERE, GATED]})
    assert result.outcome == {"error": "HubRefusedError", "text": NO_TOKEN.format(GATED[0], "gated")}


def test_a_refused_shard_is_named(hub: FakeHub, tmp_path: Path) -> None:
    upload = add_shards(hub, SHARDED, [1.0, 2.0])[-1]
    upload.head, upload.code = 403, "GatedRepo"
    [result] = run(tmp_path, hub.url, {"files": [SHARDED]})
    assert result.outcome["error"] == "HubRefusedError"
    assert "403 for facebook/large/model-00002-of-00002.safetensors, " in result.outcome["text"]
