"""Serve a demo page during a test."""

import threading
from contextlib import contextmanager

from helpers.sharing import DemoServer


@contextmanager
def serving(run):
    server = DemoServer(run)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:  # otherwise a failing test would never end
        server.close()
        thread.join()
