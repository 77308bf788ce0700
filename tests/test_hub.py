"""The real Hub client against a server on this machine that serves the pocket model under GPT-2's name."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.settings import POCKET

NAME = "openai-community/gpt2"
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Answer as the Hub does for the files of one public repository."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        prefix = f"/{NAME}/resolve/"
        file = POCKET / self.path.rpartition("/")[2].partition("?")[0]
        if self.path == "/":
            return self.reply(b"", {}, with_body=False)
        if not self.path.startswith(prefix) or not file.is_file():
            return self.reply(b"", {"X-Error-Code": "EntryNotFound"}, with_body=False, status=404)
        body = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.reply(body, headers, with_body=with_body)

    def reply(self, body, headers, *, with_body, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def load(address, home, name):
    """Load a model by its Hub id in a fresh process, whose cache is empty at first."""
    source = (
        "from helpers.model import load_model, load_tokenizer\n"
        "from helpers.settings import SettingsError\n"
        "try:\n"
        f"    print(load_model({name!r}).config.vocab_size, len(load_tokenizer({name!r})))\n"
        "except SettingsError as error:\n"
        "    print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(home)}
    child = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    return child.stdout + ("" if child.returncode == 0 else child.stderr)


def test_a_model_is_downloaded_once_and_then_comes_from_the_cache_without_the_hub(hub, tmp_path):
    address = f"http://127.0.0.1:{hub.server_port}"
    assert load(address, tmp_path, NAME) == "4096 4096\n"
    assert load("http://127.0.0.1:9", tmp_path, NAME) == "4096 4096\n", "nobody listens there"


def test_a_name_the_hub_does_not_know_is_one_sentence(hub, tmp_path):
    message = load(f"http://127.0.0.1:{hub.server_port}", tmp_path, "nobody/nothing")
    assert "'nobody/nothing' could not be loaded" in message
    assert message.count("\n") == 1
