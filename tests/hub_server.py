"""A server on this machine that speaks the part of the Hub's interface that huggingface_hub needs to read models and to
upload them, large files by the LFS protocol.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """The commits of a repository, and what its branches and tags mean."""

    commits: dict[str, Files] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def files(self, revision: str) -> tuple[str, Files] | None:
        """The commit that a revision means, and its files."""
        commit = self.references.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


class Refused(Exception):  # noqa: N818
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class HubServer:
    """Repositories that are served until `close`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.token: str | None = None
        """What a request must show, if anything."""
        self.status: int | None = None
        """The error that every request gets, if any."""
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        """The error that a request gets, by its method and path, if any."""
        self.ignored: set[str] = set()
        """Files that a .gitignore keeps out of commits."""
        self.objects: dict[str, bytes] = {}
        """What was uploaded by the LFS protocol, by its SHA256."""
        self.received: list[str] = []
        """Everything that clients have sent but their headers, line by line."""
        self.ignores_ranges = False
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path and range of all requests."""
        self.bytes_sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo: str, source: Files | Path, *, reference: str = "main") -> str:
        """A new commit with these files, or those of a folder, as what `reference` means. Returns the commit."""
        if isinstance(source, Path):
            source = {str(p.relative_to(source)): p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
        commit = hashlib.sha1(repr(sorted(source.items())).encode()).hexdigest()
        repository = self.repositories.setdefault(repo, Repository())
        repository.commits[commit] = dict(source)
        repository.references[reference] = commit
        return commit

    def accept(self, path: str, body: bytes) -> bytes:
        """Carry out what a client sends. Returns the answer. Raises Refused."""
        for pattern, action in _ACTIONS:
            match = re.fullmatch(pattern, path)
            if match is not None:
                answer = action(self, body, **{key: unquote(value) for key, value in match.groupdict().items()})
                return json.dumps(answer).encode()
        raise Refused(404)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[str, bytes]:
        """The commit and the content that a path means. Raises Refused."""
        if path == "/api/whoami-v2":
            return "", json.dumps({"name": "user", "type": "user"}).encode()
        for pattern, content_of in _PATHS:
            match = re.fullmatch(pattern, path)
            if match is not None:
                parts = {key: unquote(value) for key, value in match.groupdict(default="main").items()}
                return self._content(content_of, **parts)
        raise Refused(404)

    def find(self, repo: str, revision: str) -> tuple[str, Files]:
        """The commit that a revision means, and its files. Raises Refused."""
        if repo not in self.repositories:
            raise Refused(404, "RepoNotFound")
        found = self.repositories[repo].files(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound")
        return found

    def _content(self, content_of: Any, repo: str, revision: str, **rest: str) -> tuple[str, bytes]:
        if repo in self.gated:
            raise Refused(403, "GatedRepo")
        found = self.find(repo, revision)
        content = content_of(repo, *found, **rest)
        if content_of is _info:
            content["private"] = self.repositories[repo].private
        return found[0], content if isinstance(content, bytes) else json.dumps(content).encode()


def _info(repo: str, commit: str, files: Files) -> dict[str, Any]:
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    return {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []}


def _file(repo: str, commit: str, files: Files, name: str) -> bytes:
    if name not in files:
        raise Refused(404, "EntryNotFound")
    return files[name]


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_PATHS = [
    (rf"/api/models/{_REPO}(/revision/(?P<revision>[^/]+))?", _info),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _file),
]


def _create(hub: HubServer, body: bytes) -> Any:
    asked = json.loads(body)
    repo = f"{asked['organization']}/{asked['name']}"
    if repo in hub.repositories:
        raise Refused(409)
    hub.add(repo, {".gitattributes": b""})
    hub.repositories[repo].private = asked.get("visibility") == "private" or bool(asked.get("private"))
    return {"url": f"{hub.url}/{repo}"}


def _create_branch(hub: HubServer, body: bytes, repo: str, branch: str) -> Any:
    references = hub.repositories[repo].references
    if branch in references:
        raise Refused(409)
    references[branch] = references["main"]
    return {}


def _preupload(hub: HubServer, body: bytes, repo: str, revision: str) -> Any:
    """Which way each file goes, and what the branch has under its name."""
    _, there = hub.find(repo, revision)
    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": file["path"] in hub.ignored,
                "oid": _oid(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
    }


def _oid(name: str, content: bytes) -> str:
    """What git calls a file, or the LFS protocol."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _batch(hub: HubServer, body: bytes, repo: str) -> Any:
    """Where to send large files; nowhere those that are here."""
    objects = json.loads(body)["objects"]
    return {
        "objects": [
            asked
            | (
                {}
                if asked["oid"] in hub.objects
                else {"actions": {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}}
            )
            for asked in objects
        ]
    }


def _store(hub: HubServer, body: bytes, oid: str) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400)
    hub.objects[oid] = body
    return {}


def _validate(hub: HubServer, body: bytes) -> Any:
    """The metadata of a card: this one must not name a licence `forbidden`."""
    if "license: forbidden" in json.loads(body)["content"]:
        raise Refused(400)
    return {"errors": [], "warnings": []}


def _commit(hub: HubServer, body: bytes, repo: str, revision: str) -> Any:
    files = dict(hub.find(repo, revision)[1])
    for line in body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        match operation["key"]:
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            case "deletedFile":
                del files[value["path"]]
    commit = hub.add(repo, files, reference=revision)
    return {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit}


_ACTIONS: list[tuple[str, Callable[..., Any]]] = [
    (r"/api/repos/create", _create),
    (rf"/api/models/{_REPO}/branch/(?P<branch>[^/]+)", _create_branch),
    (rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _preupload),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _batch),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", _store),
    (r"/api/validate-yaml", _validate),
    (rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _commit),
]


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # an answer is sent in two pieces: its second would wait for 40 ms

        def do_GET(self) -> None:
            self._serve(with_body=True)

        def do_HEAD(self) -> None:
            self._serve(with_body=False)

        def do_POST(self) -> None:
            self._serve(with_body=True, body=self._body())

        def do_PUT(self) -> None:
            self._serve(with_body=True, body=self._body())

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a test's output should be its own."""

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _serve(self, *, with_body: bool, body: bytes | None = None) -> None:
            path = urlsplit(self.path).path
            hub.requests.append((self.command, path, self.headers.get("Range")))
            hub.received += [self.path, *(body or b"").decode(errors="replace").splitlines()]
            status = hub.status or hub.refuse(self.command, path)
            try:
                if status is not None:
                    raise Refused(status)
                uploads = self.command == "PUT"  # to a storage elsewhere, which must not see the token
                if hub.token is not None and not uploads and self.headers.get("Authorization") != f"Bearer {hub.token}":
                    raise Refused(401)
                commit, content = hub.answer(path) if body is None else ("", hub.accept(path, body))
            except Refused as refused:
                self._send(refused.status, {"X-Error-Code": refused.code} if refused.code else {}, b"{}", with_body)
                return
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            status, part = self._part(content, headers)
            self._send(status, headers, part, with_body)

        def _part(self, content: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted is None or hub.ignores_ranges:
                return 200, content
            start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            return 206, content[start:stop]

        def _send(self, status: int, headers: Mapping[str, str], content: bytes, with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                hub.bytes_sent += len(content)
                with contextlib.suppress(ConnectionError):  # the client had enough
                    self.wfile.write(content)

    return Handler


def serve(monkeypatch: Any, cache: Path) -> Iterator[HubServer]:
    """A server that huggingface_hub takes for the Hub, with a cache of its own in the folder `cache`, and no token."""
    from huggingface_hub import close_session, constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # it may know another proxy
    try:
        yield server
    finally:
        close_session()
        server.close()
