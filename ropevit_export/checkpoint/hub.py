"""Weights from the Hugging Face hub or its local cache: pinned to a commit, checked against the hub's hash."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.file_download import HfFileMetadata

from ropevit_export.checkpoint import file
from ropevit_export.errors import CheckpointError, HubUnreachableError, first_line
from ropevit_export.machine.files import sha256
from ropevit_export.models.spec import HubFile
from ropevit_export.values import Checkpoint

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(files: Sequence[HubFile], revision: str | None = None) -> Checkpoint:
    """The first of `files` that the hub has, at `revision` (default: the cached one, else the newest of `main`).

    Raises HubUnreachableError where there is no connection and no cached copy, else CheckpointError.
    """
    for candidate in files:
        cached = _cached(candidate, revision)
        if cached is not None:
            return cached
    for candidate in files:
        found = _probe(candidate, revision)
        if found is not None:
            return _download(candidate, revision, found)
    tried = " or ".join(f"{each.repo}/{each.filename}" for each in files)
    at = f" at revision {revision}" if revision else ""
    raise CheckpointError(f"the hub has no {tried}{at}: give a local file with --weights PATH.")


def _cached(candidate: HubFile, revision: str | None) -> Checkpoint | None:
    path = try_to_load_from_cache(candidate.repo, candidate.filename, revision=revision)
    return _checkpoint(candidate, Path(path)) if isinstance(path, str) else None


def _probe(candidate: HubFile, revision: str | None) -> HfFileMetadata | None:
    """What the hub says of the file; None if it has none. One request without retries: offline must not cost time."""
    name = f"{candidate.repo}/{candidate.filename}"
    try:
        return get_hf_file_metadata(hf_hub_url(candidate.repo, candidate.filename, revision=revision))
    except (RepositoryNotFoundError, EntryNotFoundError):
        return None
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise CheckpointError(f"the hub answered {error.response.status_code} for {name}.") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(f"HF_HUB_OFFLINE is set and {name} is not cached.") from error
    except Exception as error:
        if not _is_transport(error):
            raise
        raise HubUnreachableError(f"no connection to the hub for {name} ({error}), and no cached copy.") from error


def _download(candidate: HubFile, revision: str | None, found: HfFileMetadata) -> Checkpoint:
    name = f"{candidate.repo}/{candidate.filename}"
    try:  # by the revision's own name: only then does the cache note which commit that is, for runs without a hub
        path = Path(hf_hub_download(candidate.repo, candidate.filename, revision=revision))
    except HfHubHTTPError as error:
        raise CheckpointError(f"the hub answered {error.response.status_code} for {name}.") from error
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
    return _checkpoint(candidate, path)


def _checkpoint(candidate: HubFile, path: Path) -> Checkpoint:
    """Cached files lie in `snapshots/<commit>/`."""
    commit = path.relative_to(path.parents[len(Path(candidate.filename).parts)]).parts[0]
    return dataclasses.replace(file.read(path), source=f"{candidate.repo}/{candidate.filename}", revision=commit)


def _is_transport(error: Exception) -> bool:
    """No answer at all. The hub's HTTP library has changed twice; its connection errors keep these names."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError"})
