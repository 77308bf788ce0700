"""What the doctor knows about a machine: plain values, read once by `machine` and judged by the rules.

Sizes are in bytes. A group that could not be read is an `Unread`; a check that needs it gets the status 'unknown'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OLDEST_CAPABILITY = (5, 0)  # no wheel of the course has code for a card before Maxwell


class UnreadError(RuntimeError):
    """A check needs something that could not be read; the message is the cause."""


class Unread:
    """A placeholder for facts that could not be read: false, and any attribute but `cause` raises `UnreadError`."""

    def __init__(self, cause: str) -> None:
        self.__dict__["cause"] = cause

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise UnreadError(self.__dict__["cause"])


@dataclass(frozen=True)
class Python:
    """The Python that runs, and the environments that were meant."""

    version: tuple[int, int, int]
    bits: int
    executable: str
    prefix: str
    is_conda: bool = False
    expected: tuple[str, ...] = ()  # prefixes of the environments that exist for this project or are active
    kernel: str | None = None  # program of the python3 kernel that Jupyter finds; None: its own Python
    kernel_exists: bool = True


@dataclass(frozen=True)
class Platform:
    """The system; `kind` is 'Linux', 'Windows', 'WSL2', 'WSL1' or 'macOS'."""

    kind: str
    release: str = ""
    architecture: str = "x86_64"
    container: str = ""  # what shows that this is a container, such as /.dockerenv
    nvidia_on_bus: bool = False
    other_graphics: tuple[str, ...] = ()  # other makers: AMD, Intel, Apple
    nvcc: str = ""  # release of the CUDA toolkit on PATH; information only


@dataclass(frozen=True)
class Wsl:
    """What WSL2 provides of the driver that is installed on Windows."""

    dxg: bool
    libcuda: bool
    nvidia: bool  # any NVIDIA file in /usr/lib/wsl/lib
    shadowing: tuple[str, ...] = ()  # driver files that the distribution itself has installed


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a card; `used_bytes` is None if the driver does not report it, as on Windows."""

    pid: int
    name: str
    used_bytes: int | None = None


@dataclass(frozen=True)
class GpuReading:
    """One card as NVML reports it; None means not reported; `error` is set if the card is broken."""

    index: int
    name: str = ""
    uuid: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    capability: tuple[int, int] | None = None
    cuda_cores: int | None = None
    max_clock_mhz: int | None = None
    utilisation_percent: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: int | None = None
    slowed_by: tuple[str, ...] | None = None
    holders: tuple[Holder, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Nvml:
    """NVML's answer; `state` is 'ok', 'absent' (no driver), 'error' (NVML's own), 'hung', 'crashed' or 'nonsense'."""

    state: str
    cause: str = ""
    driver: str = ""
    cuda: int | None = None  # 12080 is CUDA 12.8
    cards: tuple[GpuReading, ...] = ()

    @property
    def usable(self) -> tuple[GpuReading, ...]:
        """The cards that reported a plausible size and are new enough for a wheel."""
        answered = (card for card in self.cards if not card.error and card.total_bytes)
        return tuple(card for card in answered if (card.capability or OLDEST_CAPABILITY) >= OLDEST_CAPABILITY)


@dataclass(frozen=True)
class Torch:
    """torch's answer; `state` is 'ok', 'quick' (files read, not imported), 'absent', 'broken', 'hung' or 'crashed'."""

    state: str
    cause: str = ""
    version: str = ""
    cuda: str | None = None
    available: bool | None = None
    warnings: tuple[str, ...] = ()
    uuid: str = ""
    name: str = ""
    total_bytes: int | None = None
    capability: tuple[int, int] | None = None
    codes: tuple[str, ...] = ()  # sm_86, compute_90
    bf16: bool | None = None
    product: str = ""  # the result of the small matrix product: 'ok', or what went wrong
    product_device: str = ""


@dataclass(frozen=True)
class Packages:
    """Versions by package: installed, required (the oldest), pinned, and loaded."""

    installed: Mapping[str, str]
    required: Mapping[str, str]
    pinned: Mapping[str, str]
    loaded: Mapping[str, str]


@dataclass(frozen=True)
class Memory:
    """Main memory; in a container, up to its limit."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Place:
    """A folder the course writes to: `role` is 'runs' or 'cache'; `path` may not exist yet."""

    role: str
    path: str
    free_bytes: int
    disk: str  # places on the same disk share its space
    writable: bool = True


@dataclass(frozen=True)
class ModelFolder:
    """A model's files; `problems` is empty when they are complete."""

    path: str
    problems: tuple[str, ...] = ()
    tokens: int = 0
    positions: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class ModelFiles:
    """The shipped model, and GPT-2 if it is in the Hub's cache."""

    pocket: ModelFolder
    gpt2: ModelFolder | None = None
    offline: tuple[str, ...] = ()  # the variables that disable downloads


@dataclass(frozen=True)
class Storage:
    """Where files are written (without a home folder, no cache), and whether long paths are enabled."""

    places: tuple[Place, ...]
    project: str = ""
    long_paths: bool | None = None  # enabled in Windows; None: another system


@dataclass(frozen=True)
class Machine:
    """Everything that is known about a machine. Any group may be an `Unread`."""

    python: Python
    platform: Platform
    packages: Packages
    torch: Torch
    nvml: Nvml
    memory: Memory
    storage: Storage
    files: ModelFiles
    env: Mapping[str, str]  # the environment variables that matter here
    pid: int  # of this process
    on_battery: bool = False  # also if it cannot be read
    wsl: Wsl | None = None
    quick: bool = False

    @property
    def cards(self) -> tuple[GpuReading, ...]:
        """The cards that NVML could read; none if NVML could not be asked."""
        return self.nvml.usable if self.nvml else ()

    @property
    def has_gpu(self) -> bool:
        """True if NVML lists a usable card or torch can use one."""
        return bool(self.cards or (self.torch and self.torch.available))

    @property
    def gpu(self) -> GpuReading | None:
        """The card that training would use: the one torch names, else the first visible one in CUDA's order."""
        torch = self.torch
        if not self.cards:
            seen = torch and torch.available
            return GpuReading(0, torch.name, torch.uuid, torch.total_bytes, None, torch.capability) if seen else None
        if torch and torch.uuid:
            for card in self.cards:
                if card.uuid.endswith(torch.uuid):  # NVML adds the prefix GPU-
                    return card
        return (self.visible_cards or in_cuda_order(self.cards, {}))[0]

    @property
    def visible_cards(self) -> list[GpuReading]:
        """The cards that a program may use, in CUDA's order."""
        return visible(self.cards, self.env)


def in_cuda_order(cards: Sequence[GpuReading], env: Mapping[str, str]) -> list[GpuReading]:
    """Return cards in CUDA's order, the fastest first; NVML's order is that of the slots.

    `CUDA_DEVICE_ORDER=PCI_BUS_ID` makes CUDA use the slots too.
    """
    if env.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return list(cards)

    def speed(card: GpuReading) -> tuple[Any, ...]:
        operations = (card.cuda_cores or 0) * (card.max_clock_mhz or 0)  # 0 from `nvidia-smi`
        return operations, card.capability or (0, 0), card.total_bytes or 0

    return sorted(cards, key=speed, reverse=True)  # stable: equal cards keep their order


def visible(cards: Sequence[GpuReading], env: Mapping[str, str]) -> list[GpuReading]:
    """Return the cards that `CUDA_VISIBLE_DEVICES` lets a program see, in its order.

    CUDA reads the list up to the first invalid entry; a card that appears twice hides everything.

    >>> cards = [GpuReading(0, uuid="GPU-aa"), GpuReading(1, uuid="GPU-bb")]
    >>> [card.index for card in visible(cards, {"CUDA_VISIBLE_DEVICES": "1,99,0"})]
    [1]
    """
    value = env.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return in_cuda_order(cards, env)
    seen: list[GpuReading] = []
    numbered = {str(number): card for number, card in enumerate(in_cuda_order(cards, env))}
    for entry in map(str.strip, value.split(",")):
        named = [card for card in cards if entry.startswith("GPU-") and card.uuid.startswith(entry)]
        matches = named or [card for number, card in numbered.items() if number == entry]
        if len(matches) != 1:
            break
        if matches[0] in seen:
            return []
        seen += matches
    return seen
