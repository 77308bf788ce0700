"""A demo page that is served while a test looks at it."""

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
    finally:  # or a test that fails would never end
        server.close()
        thread.join()
