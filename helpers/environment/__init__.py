"""Notebook 01: what this machine is, what stops it from training, and the command that fixes it.

- `machine`, `facts`: read this machine once, into plain values; with `access`, `requirements`, `model_files`, and two
  child processes (`child`, `nvml`, `torch_probe`)
- `python_checks`, `driver_checks`, `card_checks`, `system_checks`: the doctor's checks, built from `rules`
- `fixes`, `wheels`: the commands that fix a problem; the PyTorch wheel that fits a driver
- `diagnosis`: all checks of a machine, and the verdict
- `card`: what a graphics card is, and a table of published cards
- `live`: the monitor
- `tasks`, `install`: the tasks that work in a fresh clone, and the installation that comes first
- `host`: Colab and Kaggle
- `commands`: the `doctor` and `monitor` commands

Only the standard library is imported until a check needs more, so that the doctor also runs before anything is
installed, and on a Python that is too old: `python3 -m helpers.environment`. This is why the modules use
`from __future__ import annotations`: annotations such as `X | None` stay unevaluated. The doctor changes nothing.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "card": "CARDS GIB GraphicsCard preset_for read_card",
        "host": "prepare_host",
        "facts": "GpuReading Machine Nvml",
        "live": "Sample monitor sample",
        "machine": "read_machine",
        "diagnosis": "Diagnosis diagnose diagnosis_of unused_card",
        "rules": "Check",
        "wheels": "WheelAdvice wheel_advice",
    },
)
