"""A child Python with a time limit: what may hang or crash is asked there, so that a notebook's kernel lives on.

The child tells what it finds line by line, each line a JSON object that is added to the ones before. When it hangs
or crashes half way, what it told until then is kept.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[2]
_MARK = "@@doctor "  # a line that a library prints on its own does not hold this


@dataclass(frozen=True)
class Answer:
    """What came of asking: `state` is 'ok', 'hung', 'crashed' or 'nonsense'; `value` what was told until then."""

    state: str
    value: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""


def tell(**facts: Any) -> None:
    """Send facts to the parent; called in the child."""
    sys.stdout.write(_MARK + json.dumps(facts) + "\n")
    sys.stdout.flush()


def ask(probe: str, *, timeout_seconds: float, env: "Mapping[str, str] | None" = None) -> Answer:
    """Run a probe in a child Python and return what it told.

    Args:
        probe: 'module:function', called in the child with the function `tell` as its only argument.
        timeout_seconds: after which the child is ended.
        env: environment variables of the child; None: those of this process.
    """
    module, function = probe.split(":")
    source = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        f"import importlib; from helpers.environment.child import tell\n"
        f"importlib.import_module({module!r}).{function}(tell)"
    )
    return ask_source(source, timeout_seconds=timeout_seconds, env=env)


def ask_source(source: str, *, timeout_seconds: float, env: "Mapping[str, str] | None" = None) -> Answer:
    """Run Python source in a child and return what it told; see `ask`."""
    try:
        child = subprocess.Popen(  # noqa: S603 (this Python, and source of our own)
            [sys.executable, "-c", source],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=os.name == "posix",  # its own children end with it
        )
    except OSError as error:
        return Answer("crashed", {}, f"no child process could be started ({error})")
    return _collect(child, timeout_seconds)


def _collect(child: "subprocess.Popen[bytes]", timeout_seconds: float) -> Answer:
    try:
        out, err = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as late:
        out = _end(child) or late.stdout or b""
        return Answer("hung", _facts(out), f"no answer within {timeout_seconds:g} s")
    except BaseException:  # Ctrl-C reaches this process only
        _end(child)
        raise
    facts = _facts(out)
    if child.returncode != 0:
        return Answer("crashed", facts, _cause(child.returncode, err))
    if not facts:
        return Answer("nonsense", {}, f"an answer that cannot be read: {out[:60]!r}")
    return Answer("ok", facts)


def _end(child: "subprocess.Popen[bytes]") -> bytes:
    """End the child and those it started; one that the kernel will not let go of is left behind."""
    try:
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
        return child.communicate(timeout=1)[0]
    except (OSError, subprocess.TimeoutExpired):
        return b""


def _facts(out: bytes) -> "dict[str, Any]":
    """Add up what was told; a line cut short or spoilt is passed over."""
    facts: dict[str, Any] = {}
    for line in out.decode("utf-8", "replace").split("\n"):
        _, mark, text = line.partition(_MARK)
        try:
            told = json.loads(text) if mark else None
        except ValueError:
            continue
        if isinstance(told, dict):
            facts.update(told)
    return facts


def _cause(returncode: int, err: bytes) -> str:
    """Say how a child ended, in a few words."""
    if returncode < 0:
        name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else str(-returncode)
        return f"ended by {name}"
    if returncode > 255:
        return f"exit code {returncode:#x}"  # how Windows names a crash
    last = err.decode("utf-8", "replace").strip().splitlines()[-1:]
    return f"exit code {returncode}" + "".join(f" ({line[:200]})" for line in last)
