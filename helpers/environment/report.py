"""The diagnosis: its verdict, the table for a notebook and for a terminal, the rows to plot, the JSON."""

import re
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from helpers.environment.card import Card, card
from helpers.environment.checks import examine
from helpers.environment.facts import Machine, Unread
from helpers.environment.rules import STATUSES, Check
from helpers.environment.wheels import WheelAdvice, expects_gpu, wheel_advice

# the word carries the meaning; sign and colour repeat it. Colours tell apart for the colour-blind (Okabe and Ito), each
# with a text colour of its own, so that a badge reads alike on a light and on a dark page.
_BADGES = {
    "ok": ("✓", "#0072b2", "#ffffff"),
    "warn": ("!", "#e69f00", "#000000"),
    "fail": ("✗", "#b34700", "#ffffff"),
    "unknown": ("?", "#595959", "#ffffff"),
}
_ANSI = {"ok": "34", "warn": "33", "fail": "31;1", "unknown": "35"}
_CHAIN = (
    ("card", "gpu_identity", "does the work"),
    ("driver", "nvml_alive", "part of the system: speaks to the card"),
    ("runtime", "driver_floor", "CUDA's libraries: they come inside the wheel"),
    ("wheel", "torch_build", "PyTorch, built for one CUDA or for none"),
    ("torch", "cuda_available", "asks all of the above for the card"),
    ("product", "smoke_matmul", "the proof: a small matrix product"),
)


@dataclass(frozen=True)
class Diagnosis:
    """All checks, worst first, and what they come to.

    Attributes:
        checks: one `Check` for each of the 25 questions.
        mode: 'gpu' where a training would use a card, else 'cpu'.
        platform: 'Linux', 'Windows', 'WSL2', 'WSL1' or 'macOS'.
        quick: torch was not imported.
        card: the card, or None.
        wheel: which PyTorch wheel fits, or None where that could not be told.
        summary: the verdict where nothing fails.
        nvcc: the release of a CUDA toolkit on PATH; information only.
    """

    checks: "list[Check]"
    mode: str = "cpu"
    platform: str = ""
    quick: bool = False
    card: "Card | None" = None
    wheel: "WheelAdvice | None" = None
    summary: str = "CPU course mode: everything runs, on the CPU with the pocket model."
    nvcc: str = ""

    @property
    def exit_code(self) -> int:
        """0 where training can go on, else 1."""
        return int(any(check.status == "fail" for check in self.checks))

    @property
    def verdict(self) -> str:
        """One sentence."""
        failed = [check.id for check in self.checks if check.status == "fail"]
        return f"Not ready: mend {', '.join(failed)} first." if failed else self.summary

    def check(self, identity: str) -> Check:
        """Return one check by its id; raise `KeyError` for an id there is none of."""
        return {check.id: check for check in self.checks}[identity]

    def to_dict(self) -> "dict[str, Any]":
        """Return the diagnosis ready for JSON; this is the shape of `doctor --json`.

        `verdict` (text), `exit_code` (0 or 1), `mode` ('gpu' or 'cpu'), `platform` (text), `quick` (true or false),
        `card` (null or `name`, `total_bytes`, `free_bytes`, `capability` [major, minor], `holders` [`pid`, `name`,
        `used_bytes`], `preset`, `precision`, `driver`, `peak_tflops` {format: number}), `wheel` (null or `tag`,
        `pip_args`, `pip`, `conda`, `reason`), and `checks`: 25 of `id`, `status` ('ok', 'warn', 'fail' or 'unknown'),
        `reading`, `why`, `fix` (empty where nothing is to be done), worst first. Sizes are in bytes; what the driver
        does not tell is null.
        """
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "mode": self.mode,
            "platform": self.platform,
            "quick": self.quick,
            "card": None if self.card is None else asdict(self.card),
            "wheel": None if self.wheel is None else asdict(self.wheel),
            "checks": [asdict(check) for check in self.checks],
        }

    def chain(self) -> "list[dict[str, str]]":
        """Return this machine's own chain, from the card to a matrix product, as rows to draw.

        Each row has `link`, `status`, `reading` and `role`; the first that says 'fail' is where the chain breaks.
        """
        found = {check.id: check for check in self.checks}
        return [
            {"link": link, "status": found[name].status, "reading": found[name].reading, "role": role}
            for link, name, role in _CHAIN
            if name in found
        ]

    def equivalents(self) -> "list[dict[str, str]]":
        """Return the classic guide's three commands, each with what stands for it here, as rows of a table."""
        found = {check.id: check.reading for check in self.checks}
        toolkit = f"nvcc {self.nvcc}" if self.nvcc else "no nvcc"
        rows = (
            (
                "nvidia-smi",
                f"{found.get('nvml_alive')}; {found.get('vram_free')}",
                "the driver, the card, who holds memory",
            ),
            ("nvcc --version", toolkit, "information only: a wheel brings its own CUDA runtime, no toolkit is needed"),
            ("torch.cuda.is_available()", found.get("cuda_available", ""), "what a training gets, and why if nothing"),
        )
        return [{"command": command, "here": here or "", "means": means} for command, here, means in rows]

    def table(self, *, color: bool = False) -> str:
        """Return the table for a terminal; the verdict is its last line."""
        lines = []
        for check in self.checks:
            sign, _, _ = _BADGES[check.status]
            badge = f"{sign} {check.status:8}"
            badge = f"\x1b[{_ANSI[check.status]}m{badge}\x1b[0m" if color else badge
            lines.append(f"{badge}{check.id:26}{_printable(check.reading)}")
            if check.status in ("fail", "warn", "unknown"):
                lines += [f"{'':36}{check.why}"] + ([f"{'':36}-> {_printable(check.fix)}"] if check.fix else [])
        verdict = f"\x1b[1m{self.verdict}\x1b[0m" if color else self.verdict
        return "\n".join([*lines, "", verdict])

    def _repr_html_(self) -> str:
        """Return the table for a notebook, escaped; its text takes the page's own colours."""
        rows = "".join(_html_row(check) for check in self.checks)
        head = "".join(f"<th {_CELL}>{name}</th>" for name in ("status", "check", "reading", "why it matters", "fix"))
        return (
            f"<p style='font-size:1.15em'><b>{escape(self.verdict)}</b></p>"
            f"<table style='color:inherit'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def __str__(self) -> str:
        """Return the table without colours."""
        return self.table()


_CELL = "style='text-align:left;vertical-align:top;overflow-wrap:anywhere'"


def _html_row(check: Check) -> str:
    sign, background, text = _BADGES[check.status]
    style = f"background:{background};color:{text};padding:1px 7px;border-radius:4px;white-space:nowrap;font-weight:600"
    fix = f"<code style='white-space:pre-wrap'>{escape(check.fix)}</code>" if check.fix else ""
    cells = (
        f"<span style='{style}'>{sign} {check.status}</span>",
        f"<code style='white-space:nowrap'>{escape(check.id)}</code>",
        escape(check.reading),
        re.sub(r"`(.+?)`", r"<code>\1</code>", escape(check.why)),
        fix,
    )
    return "<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>"


def _printable(text: str) -> str:
    """Take out control characters: a process may have any name, and a terminal obeys some of them."""
    return "".join(char if char.isprintable() else " " for char in text)


def diagnosis_of(machine: Machine) -> Diagnosis:
    """Judge a machine that was read."""
    checks = examine(machine)
    assert all(check.status in STATUSES for check in checks)  # noqa: S101 (our own invariant)
    known = not isinstance(machine.platform, Unread)
    found = card(machine) if known else None
    return Diagnosis(
        checks,
        mode="gpu" if machine.has_gpu else "cpu",
        platform=machine.platform.kind if known else "",
        quick=machine.quick,
        card=found,
        wheel=wheel_advice(machine) if known else None,
        summary=_summary(machine, found) if known else Diagnosis.summary,
        nvcc=machine.platform.nvcc if known else "",
    )


def _summary(machine: Machine, found: "Card | None") -> str:
    if found is not None:
        name = f"{found.name}, preset {found.preset}"
        if machine.quick:
            return f"Nothing is in the way as far as a quick look tells: {name}."
        if not isinstance(machine.torch, Unread) and machine.torch.available:
            return f"Ready to train on the GPU: {name}."
        return f"A card is there ({name}), but torch could not be asked; on the CPU everything runs."
    if expects_gpu(machine):
        return "The card could not be asked; until it answers: CPU course mode, with the pocket model."
    return Diagnosis.summary
