"""Find a graphics card by its name, so that a run can be planned for a card that is not in this machine."""

import re

from helpers.display import did_you_mean
from helpers.environment.card import CARDS, GraphicsCard, read_card
from helpers.settings import SettingsError

__all__ = ["CARDS", "DEFAULT_CARD", "GraphicsCard", "card_of_this_machine", "find_card", "same_card"]

DEFAULT_CARD = "RTX 4070 Ti"


def find_card(name: str) -> GraphicsCard:
    """Return a published card by its name, as people or the driver write it.

    Raises:
        SettingsError: there is none of that name; the nearest is named.

    >>> find_card("NVIDIA GeForce RTX 4070 Ti").half_tflops
    80.2
    """
    for card in CARDS:
        if same_card(card.name, name):
            return card
    number = "".join(re.findall(r"\d{4}", name))  # RTX 4060 is nearer to the 4060 Ti with 16 GB than to the 4070
    same_number = [card.name for card in CARDS if number and number in card.name]
    names, cutoff = (same_number, 0.0) if same_number else ([card.name for card in CARDS], 0.5)
    raise SettingsError(f"There is no card {name!r} in the table{did_you_mean(name, names, cutoff=cutoff)}")


def card_of_this_machine() -> GraphicsCard | None:
    """Return the card that training here would use, read from the driver; None without an NVIDIA card."""
    card = read_card()
    return card if card is not None and card.total_bytes else None


def same_card(one: str, other: str) -> bool:
    """Tell whether two names are of the same card: the driver's and the shop's differ.

    >>> same_card("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti")
    True
    """
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|rtx|tesla|gpu|gb|[^a-z0-9]", "", name.lower())
