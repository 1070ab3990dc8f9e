"""A model hub on the loopback interface: its API as far as downloads need it, with failures to order."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest

PLACE = "/{repo_id}/resolve/{revision}/{filename}"
COMMIT, LATER = "a" * 40, "b" * 40


class Hub:
    """Serves ``folder`` as the repository ``some/csm``; ``commit`` is what its main branch is at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = COMMIT
        self.down = False  # no answer but 503
        self.statuses: dict[str, int] = {}  # by a file's name, or "api"
        self.dropped: set[str] = set()  # files whose connection breaks in the middle
        self.asked: list[str] = []  # "GET config.json"
        self.url = ""

    def downloaded(self) -> list[str]:
        """The files that were sent, in order."""
        return [line.removeprefix("GET ") for line in self.asked if line.startswith("GET ") and line != "GET api"]

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = "api" if "/api/" in handler.path else handler.path.split("/resolve/")[1].split("/", 1)[1].split("?")[0]
        self.asked.append(f"{handler.command} {name}")
        status = 503 if self.down else self.statuses.get(name, 200)
        file = self.folder / name
        if status != 200:
            return self._send(handler, status, b"")
        if name == "api":
            if not handler.path.startswith("/api/models/some/csm/"):
                return self._send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
            names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
            found = {"id": "some/csm", "sha": self.commit, "siblings": [{"rfilename": n} for n in names]}
            return self._send(handler, 200, json.dumps(found).encode(), {"Content-Type": "application/json"})
        if not file.is_file():
            return self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return self._send(handler, 200, data, headers, broken=name in self.dropped)

    def _send(
        self,
        handler: http.server.BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        broken: bool = False,
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(data[: len(data) // 2] if broken else data)
            if broken:
                handler.close_connection = True
                handler.wfile.flush()
                handler.connection.shutdown(2)


@contextmanager
def serving(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's client talks to a hub that serves ``folder``, and keeps what it downloads in ``home``."""
    hub = Hub(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        def do_HEAD(self) -> None:
            hub.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + PLACE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
