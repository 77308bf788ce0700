"""The diagnosis: all checks, the verdict, the table for a notebook and for a terminal, the JSON."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from helpers.display import STATUS_MARKS, Html, PlainTextMixin, html_table, printable, status_badge
from helpers.environment import card_checks, driver_checks, python_checks, system_checks
from helpers.environment.card import GraphicsCard, read_card
from helpers.environment.facts import GpuReading, Machine
from helpers.environment.fixes import with_shell
from helpers.environment.machine import read_machine
from helpers.environment.rules import NO_GPU, STATUSES, Check, Rule
from helpers.environment.wheels import WheelAdvice, expects_gpu, wheel_advice
from helpers.paths import COMMAND

# In the order in which a support engineer would ask: the modules, and the rules in each of them, are in this order.
RULES = tuple(
    value
    for module in (python_checks, driver_checks, card_checks, system_checks)
    for value in vars(module).values()
    if isinstance(value, Rule)
)
_ANSI = {"ok": "34", "warn": "33", "fail": "31;1", "unknown": "35"}
_CHAIN = (
    ("card", "gpu_identity", "the graphics card, which computes"),
    ("driver", "nvml_alive", "part of the system: talks to the card"),
    ("wheel", "torch_build", "PyTorch, built for one CUDA or for none"),
    ("runtime", "driver_floor", "CUDA's libraries: they come inside the wheel"),
    ("torch", "cuda_available", "asks all of the above for the card"),
    ("product", "smoke_matmul", "the proof: a small matrix product"),
)
_CPU_MODE = "CPU course mode: everything runs, on the CPU with the pocket model."


@dataclass(frozen=True)
class Diagnosis(PlainTextMixin):
    """All checks of a machine, worst first, and the conclusion."""

    machine: Machine
    checks: list[Check]
    card: GraphicsCard | None = None
    wheel: WheelAdvice | None = None  # None if the platform is not known
    summary: str = _CPU_MODE  # the verdict if nothing fails

    @property
    def mode(self) -> str:
        """'gpu' if training would use a card, else 'cpu'."""
        return "gpu" if self.machine.has_gpu else "cpu"

    @property
    def exit_code(self) -> int:
        """0 if nothing prevents training, else 1."""
        return int(any(check.status == "fail" for check in self.checks))

    @property
    def verdict(self) -> str:
        """The conclusion in one sentence."""
        failed = [check.id for check in self.checks if check.status == "fail"]
        return f"Not ready: fix {', '.join(failed)} first." if failed else self.summary

    def check(self, identity: str) -> Check:
        """Return one check by its id; raise `KeyError` for an unknown id."""
        return {check.id: check for check in self.checks}[identity]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as values for JSON, the output of `doctor --json`.

        `verdict` (text), `exit_code` (0 or 1), `mode` ('gpu' or 'cpu'), `platform` (text), `quick` (true or false),
        `card` (null or `name`, `total_bytes`, `free_bytes`, `capability` [major, minor], `holders` [`pid`, `name`,
        `used_bytes`], `preset`, `precision`, `driver`, `peak_tflops` {format: number}), `wheel` (null or `tag`,
        `pip_args`, `pip`, `conda`, `reason`), and `checks`, worst first, each with `id`, `status` ('ok', 'warn', 'fail'
        or 'unknown'), `reading`, `why`, `fix` (empty if there is nothing to do). Sizes are in bytes; what the driver
        does not report is null.
        """
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "mode": self.mode,
            "platform": self.machine.platform.kind if self.machine.platform else "",
            "quick": self.machine.quick,
            "card": None if self.card is None else _card_facts(self.card, self.machine.gpu),
            "wheel": None if self.wheel is None else asdict(self.wheel),
            "checks": [asdict(check) for check in self.checks],
        }

    def chain(self) -> list[dict[str, str]]:
        """Return this machine's chain from the card to a matrix product, as rows for `plot_chain`.

        Each row has `link`, `status`, `reading` and `role`. The chain breaks at the first row with status 'fail'; a
        link that does not exist, or cannot work because of a link above it, has the status 'absent'.
        """
        rows, broken = [], ""
        cuda = self.machine.torch and self.machine.torch.cuda
        for link, identity, role in _CHAIN:
            status, reading = self.check(identity).status, self.check(identity).reading
            if broken and status != "fail":
                status, reading = "absent", f"cannot work: {broken} fails"
            elif link == "runtime" and status != "fail":
                status = status if cuda else "absent"
                reading = f"CUDA {cuda}; {reading}" if cuda else "the wheel has no CUDA libraries"
            elif self.card is None and link != "product" and status == "ok":
                status, reading = "absent", reading.removesuffix(": nothing to check")
            broken = broken or (link if status == "fail" else "")
            rows.append({"link": link, "status": status, "reading": reading, "role": role})
        return rows

    def equivalents(self) -> list[dict[str, str]]:
        """Return the three commands of classic guides, each with its equivalent here, as rows of a table."""
        nvml, free = self.check("nvml_alive").reading, self.check("vram_free").reading
        release = self.machine.platform and self.machine.platform.nvcc
        nvcc, available = f"nvcc {release}" if release else "no nvcc", self.check("cuda_available").reading
        rows = (
            ("nvidia-smi", f"{nvml}; {free}" if self.machine.gpu else nvml, "the driver, the card and its free memory"),
            ("nvcc --version", nvcc, "information only: a wheel includes its own CUDA runtime and needs no toolkit"),
            ("torch.cuda.is_available()", available, "whether training gets the card, and if not, why"),
        )
        return [{"command": command, "here": here, "means": means} for command, here, means in rows]

    def table(self, *, color: bool = False) -> str:
        """Return the table for a terminal; the verdict is its last line."""
        lines = []
        for check in self.checks:
            badge = f"{STATUS_MARKS[check.status][0]} {check.status:8}"
            badge = f"\x1b[{_ANSI[check.status]}m{badge}\x1b[0m" if color else badge
            lines.append(f"{badge}{check.id:26}{printable(check.reading)}")
            if check.status != "ok":
                lines.append(f"{'':36}{check.why}")
                lines += [f"{'':36}-> {printable(with_shell(check.fix))}"] if check.fix else []
        verdict = printable(self.verdict)
        return "\n".join([*lines, "", f"\x1b[1m{verdict}\x1b[0m" if color else verdict])

    def _repr_html_(self) -> str:
        """Return the table for a notebook, with everything escaped, in the page's own text colours."""
        relevant = [check for check in self.checks if check.reading != NO_GPU.reading]
        rest = [check for check in self.checks if check.reading == NO_GPU.reading]
        verdict = f"<p style='font-size:1.15em'><b>{escape(self.verdict)}</b></p>{_table(relevant)}"
        if not rest:
            return verdict
        summary = f"<summary>{len(rest)} checks of a GPU, with nothing to check here</summary>"
        return f"{verdict}<details>{summary}{_table(rest)}</details>"

    __str__ = table


def _card_facts(card: GraphicsCard, reading: GpuReading) -> dict[str, Any]:
    return {
        "name": card.name,
        "total_bytes": card.total_bytes,
        "free_bytes": reading.free_bytes,
        "capability": reading.capability,
        "holders": [asdict(holder) for holder in reading.holders],
        "preset": card.preset,
        "precision": card.precision(),
        "driver": card.driver,
        "peak_tflops": card.peak_tflops,
    }


def _table(checks: list[Check]) -> str:
    rows = [
        (status_badge(one.status), _code(one.id), _text(one.reading), _text(one.why), _code(with_shell(one.fix)))
        for one in checks
    ]
    return html_table(("status", "check", "reading", "why it matters", "fix"), rows)


def _code(text: str) -> Html:
    breakable = escape(text).replace("_", "_<wbr>")  # a narrow column would break a name between any two letters
    return Html(f"<code>{breakable}</code>" if text else "")


def _text(text: str) -> Html:
    return Html(re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text)))


def diagnose(*, quick: bool = False) -> Diagnosis:
    """Check what this machine is and what stops it from training; the checks change nothing and never raise.

    `quick` does not import torch: it takes a second instead of a few, and up to three checks then say "not asked".
    """
    return diagnosis_of(read_machine(quick=quick))


def diagnosis_of(machine: Machine) -> Diagnosis:
    """Return the diagnosis of a machine that was read or simulated."""
    # sorting is stable: checks with the same status keep the order of RULES
    checks = sorted((rule(machine) for rule in RULES), key=lambda check: STATUSES.index(check.status))
    if not machine.platform:  # the card and the wheel depend on it
        return Diagnosis(machine, checks)
    card = read_card(machine)
    return Diagnosis(machine, checks, card, wheel_advice(machine), _summary(machine, card))


def unused_card() -> str:
    """Return a warning if torch cannot use the card here, because a run on the CPU looks like any other; else ''."""
    if not expects_gpu(read_machine(quick=True)):  # takes a second; torch is loaded only if a card is expected
        return ""
    machine = read_machine()
    if not machine.torch or machine.torch.available:
        return ""
    return f"This ran on the CPU, although there is a card. {diagnosis_of(machine).verdict} See `{COMMAND} doctor`."


def _summary(machine: Machine, card: GraphicsCard | None) -> str:
    if card is not None:
        name = f"{card.name}, preset {card.preset}"
        if machine.quick:
            return f"A quick look finds nothing that stops training: {name}."
        if machine.torch and machine.torch.available:
            return f"Ready to train on the GPU: {name}."
        return f"A card was found ({name}), but torch did not answer. On the CPU everything runs."
    if expects_gpu(machine):
        return "The card did not answer; until it answers: CPU course mode, with the pocket model."
    others = " and ".join(machine.platform.other_graphics)
    return f"{_CPU_MODE} Training on {others} graphics is not tested." if others else _CPU_MODE
