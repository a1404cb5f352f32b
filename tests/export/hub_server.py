"""A small Hub on the loopback: the endpoints that huggingface_hub asks, and faults on request."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from types import TracebackType

_API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?$")
_TREE = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)$")
_FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")


@dataclass
class Repo:
    """One commit's files; ``refs`` are its branches and tags."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    refs: tuple[str, ...] = ("main",)
    token: str | None = None  # private: without this token it is as if it were not there
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # told instead of the true ones
    history: tuple[Repo, ...] = ()

    def at(self, revision: str) -> Repo | None:
        for repo in (self, *self.history):
            if revision == repo.commit or revision in repo.refs:
                return repo
        return None


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose method and path fit."""

    fits: str  # a regular expression for "GET /path"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None  # close the connection after so many bytes of the answer's body
    flip: bool = False  # every byte wrong
    shorten: int = 0  # so many bytes less than HEAD tells
    skip: int = 0  # so many requests that fit go well first
    times: int = 1_000_000
    seen: int = 0

    def strikes(self, line: str) -> bool:
        if self.seen >= self.times or not re.search(self.fits, line):
            return False
        self.skip -= 1
        self.seen += self.skip < 0
        return self.skip < 0


class Hub:
    """Context manager; ``url`` is for HF_ENDPOINT, ``log`` has the requests as "METHOD /path [range]"."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fault(self, fits: str, **kwargs: Any) -> Fault:
        fault = Fault(fits, **kwargs)
        self.faults.append(fault)
        return fault

    def requests(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """The log is the test's to look at."""

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        line = f"{self.command} {path}"
        self.hub.log.append(" ".join(filter(None, [line, self.headers.get("Range")])))
        fault = next((fault for fault in self.hub.faults if fault.strikes(line)), None)
        if fault is not None and fault.status is not None:
            self._answer(fault.status, fault.body, fault.headers)
        elif match := _API.match(path):
            self._describe(match["repo"], unquote(match["revision"] or "main"))
        elif match := _TREE.match(path):
            self._list(match["repo"], unquote(match["revision"]))
        elif match := _FILE.match(path):
            self._send_file(match["repo"], unquote(match["revision"]), unquote(match["name"]), fault)
        else:
            self._answer(404, b"", {})

    def _find(self, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            status = 404 if self.headers.get("Authorization") else 401
            self._answer(status, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found"})
            return None
        found = repo.at(revision)
        if found is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return found

    def _describe(self, name: str, revision: str) -> None:
        repo = self._find(name, revision)
        if repo is None:
            return
        siblings = []
        for file, data in repo.files.items():
            size = repo.sizes.get(file, len(data))
            entry: dict[str, Any] = {"rfilename": file, "size": size, "blobId": _git_oid(data)}
            if _is_lfs(file):
                entry["lfs"] = {"sha256": _sha256(data), "size": size, "pointerSize": 130}
            siblings.append(entry)
        answer = {"id": name, "modelId": name, "sha": repo.commit, "private": False, "siblings": siblings}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _list(self, name: str, revision: str) -> None:
        """What clients since 1.0 ask before they download."""
        repo = self._find(name, revision)
        if repo is None:
            return
        entries = []
        for file, data in repo.files.items():
            entry: dict[str, Any] = {
                "type": "file",
                "path": file,
                "oid": _git_oid(data),
                "size": repo.sizes.get(file, len(data)),
            }
            if _is_lfs(file):
                entry["lfs"] = {"oid": _sha256(data), "size": entry["size"], "pointerSize": 130}
            entries.append(entry)
        self._answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repo = self._find(name, revision)
        if repo is None:
            return
        if repo.gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access"})
            return
        if file not in repo.files:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
            return
        data = repo.files[file]
        etag = _sha256(data) if _is_lfs(file) else _git_oid(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, total = int(asked[1]), len(data)
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            status, data = 206, data[start:]
        if fault is not None and fault.flip:
            data = bytes(byte ^ 0xFF for byte in data)
        if fault is not None:
            data = data[: len(data) - fault.shorten]
        self._answer(status, data, headers, fault.cut_after if fault is not None else None)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], cut_after: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut_after])


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".onnx"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
