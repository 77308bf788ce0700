"""The doctor before anything is installed: `python3 -m helpers.environment [--wheel] [--json] [--quick]`."""

import argparse
import json
import os
import sys

from helpers.environment import diagnose, wheel_advice
from helpers.environment.facts import UnreadError


def main(arguments: "list[str] | None" = None) -> int:
    """Run the doctor and return its exit code: 0 where training can go on, else 1."""
    parser = argparse.ArgumentParser(prog="python3 -m helpers.environment", description=__doc__)
    parser.add_argument("--wheel", action="store_true", help="say which PyTorch wheel fits this machine, and why")
    parser.add_argument("--pip-args", action="store_true", help="with --wheel: only what follows `pip install`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="do not import torch")
    asked = parser.parse_args(arguments)
    if asked.pip_args and not asked.wheel:
        parser.error("--pip-args goes with --wheel")
    return _wheel(asked) if asked.wheel else _doctor(asked)


def _wheel(asked: argparse.Namespace) -> int:
    try:
        advice = wheel_advice()
    except UnreadError as error:
        print(f"Error: which wheel fits could not be told: {error}", file=sys.stderr)
        return 1
    if asked.pip_args:
        print(advice.pip_args)
    elif asked.json:
        print(json.dumps(vars(advice), indent=2))
    else:
        print(f"{advice.reason}\n\npip:    {advice.pip}\nconda:  {advice.conda}")
    return 0


def _doctor(asked: argparse.Namespace) -> int:
    diagnosis = diagnose(quick=asked.quick)
    if asked.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        print(diagnosis.table(color=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return diagnosis.exit_code


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a sign shows another in its place
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
