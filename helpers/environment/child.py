"""Run Python in a child process with a time limit: code that may hang or crash does so there, not in the kernel.

The child reports line by line; each line is a JSON object that is merged into the previous ones. If it hangs or crashes
halfway, what it has reported so far is kept.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from helpers.paths import ROOT

_MARK = "@@doctor "  # distinguishes our lines from what libraries print


@dataclass(frozen=True)
class Answer:
    """What a child reported; `state` is 'ok', 'hung', 'crashed' or 'nonsense'."""

    state: str
    value: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""


def report(**facts: Any) -> None:
    """Send facts to the parent; called in the child."""
    print(_MARK + json.dumps(facts), flush=True)


def ask(source: str, *, timeout_seconds: float) -> Answer:
    """Run Python source that calls `report` in a child and return what it reported; kill it after the time limit."""
    # appended: installed packages and PYTHONPATH come first, as in this process
    prelude = f"import sys; sys.path.append({str(ROOT)!r})\nfrom helpers.environment.child import report\n"
    try:
        child = subprocess.Popen(  # noqa: S603 (this Python, and our own source)
            [sys.executable, "-c", prelude + source],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",  # so that `_kill` also reaches its own children
        )
    except OSError as error:
        return Answer("crashed", {}, f"no child process could be started ({error})")
    try:
        out, err = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as timeout:
        return Answer("hung", _merge(_kill(child) or timeout.stdout or b""), f"no answer within {timeout_seconds:g} s")
    except BaseException:  # the child has its own session, so our Ctrl-C does not reach it
        _kill(child)
        raise
    facts = _merge(out)
    if child.returncode != 0:
        return Answer("crashed", facts, _describe_exit(child.returncode, err))
    if not facts:
        return Answer("nonsense", {}, f"an answer that cannot be read: {out[:60]!r}")
    return Answer("ok", facts)


def _kill(child: subprocess.Popen[bytes]) -> bytes:
    """Kill the child and the processes it started; a process stuck in the driver cannot be killed."""
    try:
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        return child.communicate(timeout=1)[0]
    except (OSError, subprocess.TimeoutExpired):
        return b""


def _merge(out: bytes) -> dict[str, Any]:
    """Merge the reported lines; skip lines that are cut short or not ours."""
    facts: dict[str, Any] = {}
    for line in out.decode("utf-8", "replace").split("\n"):
        _, mark, text = line.partition(_MARK)
        try:
            reported = json.loads(text) if mark else None
        except ValueError:
            continue
        if isinstance(reported, dict):
            facts.update(reported)
    return facts


def _describe_exit(returncode: int, err: bytes) -> str:
    """Describe in a few words how a child ended."""
    if returncode < 0:
        name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else str(-returncode)
        return f"ended by {name}"
    if returncode > 255:
        return f"exit code {returncode:#x}"  # Windows reports a crash as a large number
    last = err.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"exit code {returncode}" + "".join(f" ({line[:200]})" for line in last)
