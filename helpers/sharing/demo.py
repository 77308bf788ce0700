"""A server on this machine for a page on which the base and the tuned model continue a prompt token by token.

It uses Python's HTTP server instead of Gradio, which would install about 60 packages for a prompt and six sliders. It
listens on loopback only, and answers only requests with the token from its address: other programs, and other pages
in the browser, can send requests to this machine too.
"""

import json
import os
import secrets
import sys
import threading
from collections.abc import Generator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from helpers.display import first_line
from helpers.evaluation import load_base, load_tuned
from helpers.evaluation.sampling import encode_prompt, sample_tokens
from helpers.model import check_sound
from helpers.settings import EvaluationSettings, SettingsError, read_run_settings
from helpers.sharing.demo_page import SAMPLING, served_page

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_MAX_REQUEST_BYTES = 1_000_000


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name != "nt"  # Windows would let two demos share a port

    def handle_error(self, *request: Any) -> None:
        """Print an error, unless the visitor only pressed Stop or left the page."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*request)


class DemoServer:
    """The server of a run's demo page.

    Attributes:
        address: the page's address, with the token that opens it.
        note: the text under the page's title.
    """

    def __init__(self, run: str, *, port: int = 0) -> None:
        """Load the models and bind a port; 0 means any free one.

        Raises:
            SettingsError: the run has no model that can be sampled, or the port is in use.
        """
        read_run_settings(run)
        self._run, self._token = run, secrets.token_urlsafe(16)
        self._models, self.note = _load_models(run)
        # One model answers at a time, for all visitors: not every card holds two models.
        self._lock, self._closed = threading.Lock(), threading.Event()
        try:
            self._server = _Server(("127.0.0.1", port), partial(_Handler, self))
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"Port {port} cannot be used ({first_line(error)}): end the program that uses it, or choose another "
                "with --port; --port 0 takes a free one."
            ) from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/?token={self._token}"

    def serve(self) -> None:
        """Answer until `close` is called or Ctrl-C is pressed."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            pass
        finally:
            self._closed.set()
            self._server.server_close()

    def close(self) -> None:
        """End `serve`, and any generation after its next token."""
        self._closed.set()
        self._server.shutdown()

    def is_allowed(self, host: str, token: str) -> bool:
        """Return whether a request uses this server's own address and token.

        The host is checked because a website can point its own domain name to this machine (DNS rebinding).
        """
        hosts = (f"127.0.0.1:{self.port}", f"localhost:{self.port}")
        if ":" not in host:  # browsers leave out port 80
            host += ":80"
        return host in hosts and secrets.compare_digest(token.encode(), self._token.encode())

    def page(self) -> str:
        """Return the page's HTML."""
        model, tokenizer = self._models["tuned"]
        return served_page(
            self._run, list(self._models), note=self.note, n_positions=model.config.n_positions, tokenizer=tokenizer
        )

    def start(self, values: dict[str, Any]) -> Generator[dict[str, str]]:
        """Check a request; return a generator of growing continuations, one model after the other.

        Raises:
            SettingsError: a value is not allowed, or prompt and answer exceed the model's positions.
        """
        names = ("prompt", *SAMPLING)
        settings = EvaluationSettings(run=self._run, **{name: values[name] for name in names if name in values})
        prompts = {name: encode_prompt(*pair, settings) for name, pair in self._models.items()}
        return self._continue(prompts, settings)

    def _continue(self, prompts: dict[str, list[int]], settings: EvaluationSettings) -> Generator[dict[str, str]]:
        for name, ids in prompts.items():
            model, tokenizer = self._models[name]
            with self._lock, closing(sample_tokens(model, ids, settings)) as stream:
                new_tokens = []
                for token, _ in stream:
                    if self._closed.is_set():
                        return
                    new_tokens.append(token)
                    text = tokenizer.decode(new_tokens, skip_special_tokens=True)
                    yield {"model": name, "text": text.rstrip("\ufffd")}  # an incomplete character


def _load_models(run: str) -> tuple[dict[str, tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]], str]:
    """Return the base and tuned model, and a sentence about them; only the tuned one if the base cannot be loaded."""
    tuned = load_tuned(run)
    check_sound(*tuned)
    try:
        base = load_base(run)
        check_sound(*base)
    except SettingsError as error:  # a Hub model without a network, a folder that has moved
        return {"tuned": tuned}, f"Only the tuned model is shown, because the base model is missing: {error}"
    return {"base": base, "tuned": tuned}, "Both models continue the same text, with the same settings and seed."


class _Handler(BaseHTTPRequestHandler):
    """Answers GET / with the page and POST /continue with server-sent events."""

    timeout = 60  # seconds; a visitor who stops reading would block the model for all others

    def __init__(self, demo: DemoServer, *arguments: Any) -> None:
        self.demo = demo
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Send the page."""
        path, _, query = self.path.partition("?")
        if not self._is_allowed(parse_qs(query).get("token", [""])[0]):
            return
        if path != "/":
            self._reply(404, "There is only one page here: /.")
            return
        self._reply(200, self.demo.page(), kind="text/html")

    def do_POST(self) -> None:
        """Generate; each event has the complete continuation of a model so far."""
        if not self._is_allowed(self.headers.get("X-Token", "")):
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= _MAX_REQUEST_BYTES:
                raise ValueError("its length is not allowed")
            events = self.demo.start(dict(json.loads(self.rfile.read(length))))
        except SettingsError as error:
            self._reply(400, str(error))
            return
        except (ValueError, TypeError, RecursionError) as error:
            self._reply(400, f"The request is not a JSON object with settings ({first_line(error)}).")
            return
        self._start(200, "text/event-stream")
        try:
            with closing(events):
                for event in events:
                    self._send(event)
        except (RuntimeError, SettingsError) as error:  # such as overflowing logits, or out of memory
            self._send({"error": f"The model could not continue the text: {first_line(error)}."})

    def _send(self, event: dict[str, str]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _is_allowed(self, token: str) -> bool:
        allowed = self.demo.is_allowed(self.headers.get("Host", ""), token)
        if not allowed:
            self._reply(403, "The address of this page ends in a token: copy it as it was printed.")
        return allowed

    def _reply(self, status: int, text: str, *, kind: str = "text/plain") -> None:
        body = text.encode()
        self._start(status, kind, len(body))
        self.wfile.write(body)

    def _start(self, status: int, kind: str, n_bytes: int | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if n_bytes is not None:
            self.send_header("Content-Length", str(n_bytes))
        self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Log nothing: the terminal shows the address."""
