"""A server on this machine that answers the real clients as the Hub does, and as it does on bad days."""

import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40
Repositories = Mapping[str, Mapping[str, Path]]  # "models/owner/name" or "datasets/owner/name" -> file name -> file


@contextmanager
def loopback_hub(
    repositories: Repositories, *, gated: Collection[str] = (), dropped: Collection[str] = ()
) -> Iterator[str]:
    """Serve the files of some repositories; give the address, which goes into HF_ENDPOINT.

    Args:
        repositories: their files.
        gated: repositories that ask for a login.
        dropped: repositories whose Parquet files break off in the middle.
    """
    kind = type("Hub", (_Hub,), {"repositories": repositories, "gated": gated, "dropped": dropped})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Hub(BaseHTTPRequestHandler):
    repositories: Repositories
    gated: Collection[str]
    dropped: Collection[str]

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.answer(paths=asked.get("paths", []))

    def answer(self, *, paths=()):
        """Find the repository and what is wanted of it."""
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
            return self.reply({}, json.dumps(describe(repository, files, rest, paths)).encode())
        return self.reply_file(files.get("/".join(rest[2:]).rstrip("/")), is_cut=repository in self.dropped)

    def reply_file(self, file, *, is_cut):
        if file is None:
            return self.reply({"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, status=404)
        headers = {"ETag": f'"{digest(file, "sha256")}"', "X-Repo-Commit": COMMIT}
        self.start(200, headers, file.stat().st_size)
        if self.command != "HEAD" and is_cut and file.suffix == ".parquet":
            self.wfile.write(file.read_bytes()[: file.stat().st_size // 2])
        elif self.command != "HEAD":
            with file.open("rb") as opened:  # a model of 500 MB is not held in memory
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
        """Say nothing."""


def describe(repository, files, rest, paths):
    """Return what the Hub's API says of a repository, of its tree, or of some of its files."""
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
    return {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}


@functools.cache
def digest(file: Path, kind: str) -> str:
    """Return the hash of a file, which is computed once."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, kind).hexdigest()
