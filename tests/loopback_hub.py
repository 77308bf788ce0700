"""A server on this machine that answers the real clients as the Hub does, including its failures."""

import base64
import functools
import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40
LARGE = (".safetensors", ".gguf")  # what the Hub keeps outside of git
Repositories = Mapping[str, Mapping[str, Path]]  # "models/owner/name" or "datasets/owner/name" -> file name -> file


@contextmanager
def loopback_hub(
    repositories: Repositories,
    *,
    gated: Collection[str] = (),
    dropped: Collection[str] = (),
    uploads: "Uploads | None" = None,
) -> Iterator[str]:
    """Serve the files of some repositories; yield the address, which goes into HF_ENDPOINT.

    Args:
        repositories: their files.
        gated: repositories that ask for a login.
        dropped: repositories whose Parquet downloads break off halfway.
        uploads: receives uploads; without it nothing can be uploaded.
    """
    state = {"repositories": repositories, "gated": gated, "dropped": dropped, "uploads": uploads}
    kind = type("Hub", (_Hub,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])  # seconds until it notices a shutdown
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Uploads:
    """What one account has uploaded, and how the Hub treats it.

    Attributes:
        folder: where the files of new repositories are kept.
        token: the only one that is accepted.
        owner: the account; it can write nowhere else.
        drops: how many connections break while a large file is being sent.
        private: names of the repositories that others cannot see.
        received: hash of a large file -> its content, complete ones only.
        commits: message of each commit -> the paths in it.
    """

    folder: Path
    token: str = "hf_right"
    owner: str = "me"
    drops: int = 0
    private: set[str] = field(default_factory=set)
    received: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, list[str]] = field(default_factory=dict)

    @property
    def repositories(self) -> dict[str, dict[str, Path]]:
        """The repositories and their files, as the server describes them."""
        return {
            f"models/{self.owner}/{repository.name}": {
                path.relative_to(repository).as_posix(): path for path in repository.rglob("*") if path.is_file()
            }
            for repository in self.folder.iterdir()
        }


class _Hub(BaseHTTPRequestHandler):
    repositories: Repositories
    gated: Collection[str]
    dropped: Collection[str]
    uploads: Uploads | None

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])) or b"{}"
        if self.uploads is not None:
            return self.take(self.path.partition("?")[0], [json.loads(line) for line in body.splitlines()])
        return self.answer(paths=json.loads(body).get("paths", []))

    def do_PUT(self):
        """Receive a large file, whose hash is the last part of the path, or break off halfway."""
        if self.uploads.drops:
            self.uploads.drops -= 1
            self.rfile.read(1)
            return self.connection.shutdown(socket.SHUT_RDWR)
        if "Content-Length" in self.headers:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        else:  # in chunks: a line with the length of each, the last of length 0
            content = b""
            while n_bytes := int(self.rfile.readline(), 16):
                content += self.rfile.read(n_bytes)
                self.rfile.readline()
        self.uploads.received[hashlib.sha256(content).hexdigest()] = content
        return self.reply({})

    def take(self, path, lines):
        """Do a step of an upload: create a repository, classify files, list missing large ones, or commit."""
        if not self.is_known:
            return self.reply({}, b'{"error": "Invalid username or password."}', status=401)
        if path == "/api/validate-yaml":  # the metadata of a model card
            return self.reply_json({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            owner, name = lines[0].get("organization", self.uploads.owner), lines[0]["name"]
            if owner != self.uploads.owner:
                return self.reply({}, b'{"error": "You have no rights here."}', status=403)
            is_there = (self.uploads.folder / name).exists()
            (self.uploads.folder / name).mkdir(exist_ok=True)
            if not is_there and lines[0].get("visibility") == "private":
                self.uploads.private.add(name)
            return self.reply_json({"url": f"{self.here}/{owner}/{name}"}, status=409 if is_there else 200)
        if "/preupload/" in path:
            kinds = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in lines[0]["files"]}
            files = [{"path": name, "uploadMode": kind, "shouldIgnore": False} for name, kind in kinds.items()]
            return self.reply_json({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = lines[0]["objects"]
            for item in objects:
                if item["oid"] not in self.uploads.received:
                    item["actions"] = {"upload": {"href": f"{self.here}/{item['oid']}"}}
            return self.reply_json({"transfer": "basic", "objects": objects})
        return self.commit(self.uploads.folder / path.split("/")[4], lines)

    def commit(self, repository, lines):
        """Store the files of a commit."""
        for line in lines[1:]:
            value = line["value"]
            path = repository / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            is_large = line["key"] == "lfsFile"
            path.write_bytes(self.uploads.received[value["oid"]] if is_large else base64.b64decode(value["content"]))
        self.uploads.commits[lines[0]["value"]["summary"]] = [line["value"]["path"] for line in lines[1:]]
        address = f"{self.here}/{self.uploads.owner}/{repository.name}/commit/{COMMIT}"
        self.reply_json({"commitUrl": address, "commitOid": COMMIT, "success": True})

    @property
    def here(self):
        return f"http://{self.headers['Host']}"

    @property
    def is_known(self):
        return self.headers.get("Authorization") == f"Bearer {self.uploads.token}"

    def reply_json(self, value, *, status=200):
        self.reply({"Content-Type": "application/json"}, json.dumps(value).encode(), status=status)

    def answer(self, *, paths=()):
        """Find the repository and answer the request."""
        if self.uploads is not None:
            if not self.is_known:
                return self.reply({}, b'{"error": "Invalid username or password."}', status=401)
            if self.path == "/api/whoami-v2":
                return self.reply_json({"type": "user", "name": self.uploads.owner, "orgs": []})
            self.repositories = self.uploads.repositories
        path = self.path.partition("?")[0].removeprefix("/")
        is_api, path = path.startswith("api/"), path.removeprefix("api/")
        if not path.startswith(("datasets/", "models/")):
            path = f"models/{path}"
        kind, owner, name, *rest = [*path.split("/"), "", ""]
        repository = f"{kind}/{owner}/{name}"
        if repository in self.gated:
            return self.reply({"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, status=401)
        if repository not in self.repositories:
            code = "" if path in ("models/", "models//") else "RepoNotFound"
            return self.reply({"X-Error-Code": code}, status=404 if code else 200)
        files = self.repositories[repository]
        if is_api:
            is_private = self.uploads is not None and name in self.uploads.private
            return self.reply({}, json.dumps(describe(repository, files, rest, paths, is_private)).encode())
        return self.reply_file(files.get("/".join(rest[2:]).rstrip("/")), is_cut=repository in self.dropped)

    def reply_file(self, file, *, is_cut):
        if file is None:
            return self.reply({"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, status=404)
        headers = {"ETag": f'"{digest(file, "sha256")}"', "X-Repo-Commit": COMMIT}
        self.start(200, headers, file.stat().st_size)
        if self.command != "HEAD" and is_cut and file.suffix == ".parquet":
            self.wfile.write(file.read_bytes()[: file.stat().st_size // 2])
        elif self.command != "HEAD":
            with file.open("rb") as opened:  # not a model of 500 MB in memory
                shutil.copyfileobj(opened, self.wfile)

    def reply(self, headers, body=b"", *, status=200):
        self.start(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self, status, headers, n_bytes):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(n_bytes)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_):
        """Log nothing."""


def describe(repository, files, rest, paths, is_private):
    """Return the answer of the Hub's API about a repository, its tree, or some of its files."""
    if rest[0] in ("tree", "paths-info"):
        below = "/".join(part for part in rest[2:] if part)
        entries = [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest(file, "sha1")}
            for name, file in files.items()
        ]
        folders = {name.rpartition("/")[0] for name in files if "/" in name}
        entries += [{"type": "directory", "path": folder, "size": 0, "oid": COMMIT} for folder in folders]
        if rest[0] == "paths-info":
            return [entry for entry in entries if entry["path"] in paths]
        return [entry for entry in entries if entry["path"].startswith(below) and entry["path"] != below]
    siblings = [{"rfilename": name} for name in files]
    about = {"sha": COMMIT, "siblings": siblings, "private": is_private, "gated": False}
    return {"id": repository.partition("/")[2], **about}


@functools.cache
def digest(file: Path, kind: str) -> str:
    """Return the hash of a file, which is computed once."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).hexdigest()
