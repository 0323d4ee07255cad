"""Weights from the Hugging Face hub or its local cache: pinned to a commit, checked against the hub's hash."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError, HubRefusedError, HubUnreachableError, first_line
from ropevit_export.machine import shards
from ropevit_export.machine.files import sha256
from ropevit_export.models.spec import HubFile
from ropevit_export.values import Checkpoint

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(files: Sequence[HubFile], revision: str | None = None) -> Checkpoint:
    """The first of `files` that the hub gives, at `revision` (default: the cached one, else the newest of `main`).

    A file that is an index stands for its shards, all of the same commit. Raises HubUnreachableError where there is no
    connection and no cached copy, HubRefusedError where a licence or a token is wanted, else CheckpointError.
    """
    for candidate in files:
        cached = _cached(candidate, revision)
        if cached is not None:
            return cached
    refusals: list[HubRefusedError] = []
    for candidate in files:
        try:
            found = _probe(candidate, revision)
        except HubRefusedError as error:  # without a token, so is a repository that does not exist: another may
            refusals.append(error)
            continue
        if found is not None:
            return _download(candidate, revision, found)
    if refusals:  # that a repository is gated says that it is there, and what to do
        raise min(refusals, key=lambda each: not isinstance(each.__cause__, GatedRepoError))
    tried = " or ".join(f"{each.repo}/{each.filename}" for each in files)
    at = f" at revision {revision}" if revision else ""
    raise CheckpointError(f"the hub has no {tried}{at}: give a local file with --weights PATH.")


def _cached(candidate: HubFile, revision: str | None) -> Checkpoint | None:
    path = try_to_load_from_cache(candidate.repo, candidate.filename, revision=revision)
    if not isinstance(path, str) or not _is_whole(Path(path)):
        return None
    return _checkpoint(candidate, Path(path))


def _is_whole(path: Path) -> bool:
    """Has every shard of an index arrived? A download may have been cut short between two."""
    return not shards.is_index(path) or all(path.with_name(name).is_file() for name in shards.names(path))


def _probe(candidate: HubFile, revision: str | None) -> HfFileMetadata | None:
    """What the hub says of the file; None if it has none. One request without retries: offline must not cost time."""
    name = f"{candidate.repo}/{candidate.filename}"
    try:
        return get_hf_file_metadata(hf_hub_url(candidate.repo, candidate.filename, revision=revision))
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise _answered(candidate, error) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(f"HF_HUB_OFFLINE is set and {name} is not cached.") from error
    except Exception as error:
        if not _is_transport(error):
            raise
        raise HubUnreachableError(f"no connection to the hub for {name} ({error}), and no cached copy.") from error


def _answered(candidate: HubFile, error: HfHubHTTPError) -> CheckpointError:
    """The error for an answer that is neither the file nor "no such file"."""
    status, name = error.response.status_code, f"{candidate.repo}/{candidate.filename}"
    if status == 429:
        return CheckpointError(
            f"the hub answered 429 for {name}, it has had too many requests: run again in some minutes, or run "
            "`hf auth login` (or set HF_TOKEN), which allows more, or give a local file with --weights PATH."
        )
    if status >= 500:
        return CheckpointError(
            f"the hub answered {status} for {name}, it is in trouble: run again later, or give a local file with "
            "--weights PATH."
        )
    if status not in (401, 403) or isinstance(error, DisabledRepoError):
        return CheckpointError(f"the hub answered {status} for {name}: give a local file with --weights PATH.")
    if isinstance(error, GatedRepoError):
        repository = "is gated"
    elif isinstance(error, RepositoryNotFoundError):  # who has no right to know is told no more
        repository = "is private or gated, or does not exist"
    else:
        repository = "is private or gated"
    licence = f"accept its licence on https://huggingface.co/{candidate.repo}"
    if status == 401:
        reason, steps = "no valid token was sent", f"{licence}, then run `hf auth login` (or set HF_TOKEN)"
    else:
        reason = "the token's account or rights don't reach it"
        steps = f"{licence} with that account, or run `hf auth login` (or set HF_TOKEN) for a token that may read it"
    return HubRefusedError(
        f"the hub answered {status} for {name}, {reason}: the repository {repository}; {steps}, "
        "or give a local file with --weights PATH."
    )


def _download(candidate: HubFile, revision: str | None, found: HfFileMetadata) -> Checkpoint:
    path = _download_file(candidate, revision, found)
    if shards.is_index(path):
        commit = _commit(candidate, path)
        for name in shards.names(path):
            _download_shard(candidate, name, commit)
    return _checkpoint(candidate, path)


def _download_shard(index: HubFile, name: str, commit: str) -> None:
    shard = HubFile(repo=index.repo, filename=str(PurePosixPath(index.filename).with_name(name)))
    try:
        found = _probe(shard, commit)
    except HubUnreachableError as error:  # it was reached a moment ago: no reason for random weights
        raise CheckpointError(f"{shard.repo}/{shard.filename} did not arrive, the connection broke: {error}") from error
    if found is None:
        raise CheckpointError(
            f"the hub has no {shard.repo}/{shard.filename}, which {index.filename} lists: "
            "give a local file with --weights PATH."
        )
    _download_file(shard, commit, found)


def _download_file(candidate: HubFile, revision: str | None, found: HfFileMetadata) -> Path:
    name = f"{candidate.repo}/{candidate.filename}"
    try:  # by the revision's own name: only then does the cache note which commit that is, for runs without a hub
        path = Path(hf_hub_download(candidate.repo, candidate.filename, revision=revision))
    except HfHubHTTPError as error:
        raise _answered(candidate, error) from error
    except OSError as error:  # the body was shorter than announced, or the disk is full
        raise CheckpointError(f"{name} did not arrive whole: {first_line(error)} Run again to continue.") from error
    except Exception as error:
        if not _is_transport(error):
            raise
        raise CheckpointError(f"{name} did not arrive whole, the connection broke: {first_line(error)}") from error
    if found.etag and _SHA256.fullmatch(found.etag) and found.etag != (ours := sha256(path)):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise CheckpointError(
            f"{name} has SHA-256 {ours[:12]}…, the hub says {found.etag[:12]}…: "
            "damaged on its way and removed from the cache. Run again."
        )
    return path


def _checkpoint(candidate: HubFile, path: Path) -> Checkpoint:
    source = f"{candidate.repo}/{candidate.filename}"
    return dataclasses.replace(file.read(path), source=source, revision=_commit(candidate, path))


def _commit(candidate: HubFile, path: Path) -> str:
    """Cached files lie in `snapshots/<commit>/`."""
    return path.relative_to(path.parents[len(Path(candidate.filename).parts)]).parts[0]


def _is_transport(error: Exception) -> bool:
    """No answer at all. The hub's HTTP library has changed twice; its connection errors keep these names."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})
