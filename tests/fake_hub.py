"""A Hugging Face Hub of one process: the HTTP calls of creating a repository, committing, listing and downloading."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

Files = dict[str, bytes]


@dataclass
class FakeHub:
    """Repositories by name, each a list of commits; ``token`` is what a writer, and a reader of ``private``, must show.

    Attributes:
        commits: by repository, files after each commit, the first of them empty.
        private: names of private repositories.
        asked: every request, as ``METHOD path``.
        cut: files whose first download ends after so many bytes.
    """

    token: str = "hf_secret"
    commits: dict[str, list[Files]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)

    def files(self, name: str) -> Files:
        return self.commits[name][-1]

    def downloads(self, pattern: str = "*") -> list[str]:
        """Files that were fetched, in order."""
        found = (re.match(r"GET /.+/resolve/\w+/(.+)", line) for line in self.asked)
        return [match[1] for match in found if match and fnmatch.fnmatch(match[1], pattern)]


@contextmanager
def running_hub(cache: Path) -> Iterator[FakeHub]:
    """A hub that huggingface_hub speaks to while entered, with a cache folder of its own."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", hub.token)
        close_session()
        try:
            yield hub
        finally:
            close_session()
            server.shutdown()
            server.server_close()


def _commit_id(number: int) -> str:
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None: ...

    def answer(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    @property
    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # -- writing -------------------------------------------------------------------------------------------------------

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.body()
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            bad = "\nlicense: none-such\n" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, mit]'}] if bad else []
            self.answer(400 if bad else 200, {"errors": errors, "warnings": []})
        elif not self.allowed:
            self.refuse(401, "", "Invalid username or password.")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path):
            name, action = match.groups()
            self.preupload(name, json.loads(body)) if action == "preupload" else self.commit(name, body)
        else:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name.startswith("other/"):
            self.refuse(403, "", "You don't have the rights to create a model under this namespace")
            return
        there = name in self.hub.commits
        if not there:
            self.hub.commits[name] = [{".gitattributes": b""}]
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(name)
        self.answer(409 if there else 200, {"url": f"{constants.ENDPOINT}/{name}"})

    def preupload(self, name: str, asked: dict[str, Any]) -> None:
        files = self.hub.files(name)
        known = {path: _blob_id(content) for path, content in files.items()}
        answers = [
            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": known.get(f["path"])}
            for f in asked["files"]
        ]
        self.answer(200, {"files": answers})

    def commit(self, name: str, body: bytes) -> None:
        files = dict(self.hub.files(name))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits[name].append(files)
        oid = _commit_id(len(self.hub.commits[name]) - 1)
        self.answer(200, {"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{oid}", "commitOid": oid})

    # -- reading -------------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        forms = (
            r"/api/models/([^/]+/[^/]+)/(tree)/([^/]+)/?()",
            r"/api/models/([^/]+/[^/]+)/(revision)/([^/]+)()",
            r"/api/models/([^/]+/[^/]+)()()()",
            r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)",
        )
        match = next(filter(None, (re.fullmatch(form, path) for form in forms)), None)
        name, what, revision, file = match.groups() if match else ("", "", "", "")
        commits = self.hub.commits.get(name)
        if commits is None or (name in self.hub.private and not self.allowed):
            self.refuse(401, "RepoNotFound", "Repository not found")
            return
        number = len(commits) - 1 if revision in ("", "main") else _number(revision, len(commits))
        if number is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "tree":
            listing = [
                {"type": "file", "path": p, "size": len(c), "oid": _blob_id(c)} for p, c in commits[number].items()
            ]
            self.answer(200, json.dumps(listing).encode())
        elif what == "resolve":
            self.resolve(commits[number], file, _commit_id(number))
        else:
            siblings = [{"rfilename": path} for path in commits[number]]
            self.answer(200, {"id": name, "modelId": name, "sha": _commit_id(number), "siblings": siblings})

    do_HEAD = do_GET

    def resolve(self, files: Files, path: str, commit: str) -> None:
        if path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        content = files[path]
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and path in self.hub.cut:
            size = self.hub.cut.pop(path)
            self.answer(200, content[:size], {**headers, "Content-Length": str(len(content)), "Connection": "close"})
            self.close_connection = True
            return
        self.answer(206 if start else 200, content[start:], headers)


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _number(revision: str, commits: int) -> int | None:
    """Of a commit named by its id."""
    if not re.fullmatch("[0-9a-f]{40}", revision) or int(revision, 16) >= commits:
        return None
    return int(revision, 16)
