"""Notebook 01: what this machine is, what stops it from training, and the command that fixes it.

`machine` reads this machine into the classes of `facts`, with `access`, `requirements`, `model_files` and two child
processes (`child`, `nvml`, `torch_probe`). The 25 rules (`rules`, `*_checks`) judge these facts, `fixes` and `wheels`
write the commands that fix a problem, and `report` is the diagnosis. `card` says what a graphics card is, `live` is the
monitor. `tasks` is what a fresh clone can be asked to do, and `install` what it does first; `host` is for
Colab and Kaggle.

Only the standard library is imported until a check needs more, so that the doctor also runs before anything is
installed, and on a Python that is too old: `python3 -m helpers.environment`. That is why annotations such as
`X | None` stay unevaluated here (`from __future__ import annotations`). The doctor changes nothing on the machine.
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
        "report": "Diagnosis diagnose diagnosis_of unused_card",
        "rules": "Check",
        "wheels": "WheelAdvice wheel_advice",
    },
)
