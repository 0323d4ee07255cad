"""A small hub on the loopback, as `huggingface_hub` knows it: files by repository and commit, and what can go wrong."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
MOST_REQUESTS = 60  # of one server: a client that never gives up must not hang the tests

Pair = tuple[str, str]  # repository, file name


@dataclass
class Upload:
    """A file on the hub: `bodies` are sent one a download, the last one from then on.

    `cut` ends the connection after that many bytes of the file, `cuts` times; `head` and `get` are statuses, and where
    they are not 200 `code` and `message` are what the hub says of them. `silent`: no answer. `stops`: silence from the
    file's middle on. `pause`: seconds between twentieths of it. `elsewhere`: another host's address, which has it.
    """

    bodies: Sequence[bytes]
    sha256: str
    cut: int = 0
    cuts: int = 0
    head: int = 200
    get: int = 200
    code: str = ""
    message: str = ""
    silent: bool = False
    stops: bool = False
    pause: float = 0.0
    elsewhere: str = ""
    downloads: int = 0


class FakeHub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.uploads: dict[tuple[str, str], dict[str, Upload]] = {}  # (repository, commit) → files
        self.names = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
        self.seen: list[str] = []
        self.tokens: list[str | None] = []  # by request
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, file: Pair, *bodies: bytes, commit: str = COMMIT, **how: Any) -> Upload:
        """Serve a file; the hash it goes by is that of the last of `bodies`."""
        upload = Upload(bodies, hashlib.sha256(bodies[-1]).hexdigest(), **how)
        self.uploads.setdefault((file[0], commit), {})[file[1]] = upload
        return upload

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is not worth a traceback."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if parts is None or len(self.server.seen) == MOST_REQUESTS:
            return self._refuse(410, "")
        self.server.seen.append(f"{self.command} {self.headers.get('Range', 'whole')}")
        self.server.tokens.append(self.headers.get("Authorization"))
        repo, revision, filename = parts.groups()
        if not any(repo == known for known, _ in self.server.uploads):
            return self._refuse(404, "RepoNotFound")
        commit = self.server.names.get(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        upload = self.server.uploads.get((repo, commit), {}).get(filename)
        if upload is None:
            return self._refuse(404, "EntryNotFound")
        if upload.silent:
            self.server.closing.wait(10)
            self.close_connection = True
            return None
        status = upload.head if self.command == "HEAD" else upload.get
        if status != 200:
            return self._refuse(status, upload.code, upload.message)
        return self._serve(upload, commit)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _serve(self, upload: Upload, commit: str) -> None:
        body = upload.bodies[min(upload.downloads, len(upload.bodies) - 1)]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(302 if upload.elsewhere else 206 if asked else 200)
        if upload.elsewhere:
            self.send_header("Location", upload.elsewhere + self.path)
        elif asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(0 if upload.elsewhere else len(body) - start))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{upload.sha256}"')
        self.send_header("X-Linked-Etag", f'"{upload.sha256}"')
        self.send_header("X-Linked-Size", str(len(body)))
        self.end_headers()
        if self.command == "HEAD" or upload.elsewhere:
            return
        if upload.cuts > 0:
            upload.cuts -= 1
            self.wfile.write(body[start : max(start, upload.cut)])
            self.close_connection = True
            return
        if upload.stops:
            self.wfile.write(body[start : len(body) // 2])
            self.server.closing.wait(10)
            self.close_connection = True
            return
        upload.downloads += 1
        step = max(1, len(body) // 20) if upload.pause else len(body)
        for at in range(start, len(body), step):
            self.wfile.write(body[at : at + step])
            time.sleep(upload.pause)


class Serving:
    """A FakeHub that answers for as long as the block lasts."""

    def __enter__(self) -> FakeHub:
        self.server = FakeHub()
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
