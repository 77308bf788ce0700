"""Graphics cards by name: memory and speed as published, so that a run can be planned for a card that is not here."""

import difflib
import re
from typing import NamedTuple

from helpers.settings import SettingsError

GIB = 2**30
DEFAULT_CARD = "RTX 4070 Ti"
_DRIVER_BYTES = GIB  # a CUDA context takes 0.3 to 0.6 GiB, a desktop some of the rest


class GraphicsCard(NamedTuple):
    """A card: its memory, and its peaks in 10**12 operations a second, dense, with float32 sums; 0: not known."""

    name: str
    total_bytes: int
    half_tflops: float
    float32_tflops: float
    has_bf16: bool = True

    @property
    def usable_bytes(self) -> int:
        """What is left for a training when the driver, its context and a desktop have taken 1 GiB."""
        return max(0, self.total_bytes - _DRIVER_BYTES)

    def precision(self, mixed_precision: str) -> str:
        """Return what `mixed_precision` comes to on this card: 'bf16', 'fp16' or 'no'."""
        best = "bf16" if self.has_bf16 else "fp16"
        return best if mixed_precision == "auto" else mixed_precision

    def tflops(self, precision: str) -> float:
        """Return the peak for a precision; bf16 on a card without it is only imitated, no faster than float32."""
        is_half = precision == "fp16" or (precision == "bf16" and self.has_bf16)
        return self.half_tflops if is_half else self.float32_tflops


# NVIDIA's data sheets; in an RTX card of these two generations, half is twice float32.
CARDS = (
    GraphicsCard("RTX 3060 12 GB", 12 * GIB, 25.5, 12.7),
    GraphicsCard("RTX 3090", 24 * GIB, 71.2, 35.6),
    GraphicsCard("RTX 4060 Ti 16 GB", 16 * GIB, 44.1, 22.1),
    GraphicsCard("RTX 4070", 12 * GIB, 58.3, 29.1),
    GraphicsCard("RTX 4070 Laptop", 8 * GIB, 40.1, 20.0),
    GraphicsCard("RTX 4070 Ti", 12 * GIB, 80.2, 40.1),
    GraphicsCard("RTX 4070 Ti SUPER", 16 * GIB, 88.2, 44.1),
    GraphicsCard("RTX 4090", 24 * GIB, 165.2, 82.6),
    GraphicsCard("T4", 15 * GIB, 65.1, 8.1, has_bf16=False),  # sold as 16 GB; error correction takes one
)


def find_card(name: str) -> GraphicsCard:
    """Return a card of the table by its name, as people or the driver write it.

    Raises:
        SettingsError: there is none of that name; the nearest is named.

    >>> find_card("NVIDIA GeForce RTX 4070 Ti").half_tflops
    80.2
    """
    names = {_bare(card.name): card for card in CARDS}
    if _bare(name) in names:
        return names[_bare(name)]
    close = difflib.get_close_matches(_bare(name), names, n=1, cutoff=0.5)
    known = ", ".join(card.name for card in CARDS)
    hint = f"did you mean {names[close[0]].name!r}?" if close else f"there are {known}."
    raise SettingsError(f"There is no card {name!r} in the table; {hint}")


def card_of_this_machine() -> GraphicsCard | None:
    """Return the card that a training here would take, read from the driver; None without an NVIDIA card."""
    from helpers.environment import card

    found = card()
    if found is None or not found.total_bytes:
        return None
    peaks = found.peak_tflops
    half = peaks.get("bfloat16", peaks.get("float16", 0.0))
    return GraphicsCard(found.name, found.total_bytes, half, peaks.get("float32", 0.0), found.precision == "bf16")


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|rtx|tesla|gpu|gb|[^a-z0-9]", "", name.lower())
