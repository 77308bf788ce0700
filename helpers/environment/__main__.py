"""The doctor, without any installed package: `python3 -m helpers.environment [--wheel] [--json] [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from helpers.display import print_any_character
from helpers.environment.diagnosis import diagnose
from helpers.environment.facts import UnreadError
from helpers.environment.wheels import wheel_advice
from helpers.paths import COMMAND


def main(arguments: list[str] | None = None, *, program: str = f"{COMMAND}.environment") -> int:
    """Run the doctor and return its exit code: 0 if nothing prevents training, else 1.

    It uses argparse instead of click, because click is not installed yet when the doctor is needed most.
    """
    print_any_character()
    summary = "Say what this machine is and what stops it from training. Exit code 1 if it cannot train."
    parser = argparse.ArgumentParser(prog=program, description=summary)
    parser.add_argument("--wheel", action="store_true", help="say which PyTorch wheel fits this machine, and why")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="do not import torch: a second instead of a few")
    options = parser.parse_args(arguments)
    return _print_wheel(options) if options.wheel else _print_diagnosis(options)


def _print_wheel(options: argparse.Namespace) -> int:
    try:
        advice = wheel_advice()
    except UnreadError as error:
        print(f"Error: the wheel for this machine is not known: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(vars(advice), indent=2))
    else:
        print(f"{advice.reason}\n\npip:    {advice.pip or 'none'}\nconda:  {advice.conda or 'none'}")
    return 0


def _print_diagnosis(options: argparse.Namespace) -> int:
    diagnosis = diagnose(quick=options.quick)
    if options.json:
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:  # https://no-color.org: set but empty counts as not set
        print(diagnosis.table(color=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return diagnosis.exit_code


if __name__ == "__main__":
    sys.exit(main())
