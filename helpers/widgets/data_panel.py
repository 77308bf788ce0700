"""The data panel of notebook 2: source, split and block size, and how much of each row would be text."""

import html
import threading
from typing import NamedTuple

from helpers.data.preparation import load_documents
from helpers.data.quality_report import useful_share
from helpers.data.splitting import SPLITS
from helpers.model import load_tokenizer
from helpers.settings import DataSettings, SettingsError
from helpers.widgets.drawing import BLUE, Bar, bar_chart
from helpers.widgets.panel import Panel

_MOST_DOCUMENTS = 2000  # that are read of a part: a source may be larger than anybody wants to wait for
_SPLIT_FIELDS = {"run", "seed", "validation_share", "test_share", "block_size"}  # no other text, no other lengths


class Lengths(NamedTuple):
    """Tokens of a source's documents, each with its end of text, and how many documents each of its parts has."""

    tokens: list[int]
    parts: dict[str, int]


class DataPanel(Panel):
    """A control for each data setting; what rows of that length would hold follows.

    A source that is new is read in the background; what was read once is kept.
    """

    def __init__(self, settings: DataSettings) -> None:
        import ipywidgets as w

        super().__init__(settings)
        self._known: dict[str, Lengths | str] = {}
        self.thread: threading.Thread | None = None
        self.gauge = w.HTML().add_class("course-status")
        self.widget = self.framed(self.gauge, self._error, *self.groups())
        self._read(settings)
        self.refresh()

    def _follow(self, settings: DataSettings) -> None:
        known = self._known.get(_key(settings))
        if isinstance(known, str):
            raise SettingsError(known)
        if known is None:
            self.gauge.value = "<p>Reading the source and counting its tokens…</p>"
            self.thread = threading.Thread(target=self._read_and_refresh, args=(settings,), daemon=True)
            self.thread.start()
            return
        self.gauge.value = shares_html(known, settings)

    def _read_and_refresh(self, settings: DataSettings) -> None:
        self._read(settings)
        self.refresh()

    def _read(self, settings: DataSettings) -> None:
        """Count a source's tokens, or keep the sentence that says why that cannot be."""
        try:
            self._known[_key(settings)] = count(settings)
        except SettingsError as error:
            self._known[_key(settings)] = str(error)

    def _summary(self) -> str:
        known = self._known[_key(self._start)]
        return f"<p>{html.escape(known)}</p>" if isinstance(known, str) else shares_html(known, self._start)


def _key(settings: DataSettings) -> str:
    return settings.model_dump_json(exclude=_SPLIT_FIELDS)


def count(settings: DataSettings) -> Lengths:
    """Count the tokens of a source's first documents; raise `SettingsError` when it cannot be read."""
    documents = load_documents(settings, n_documents=_MOST_DOCUMENTS)
    tokenizer = load_tokenizer(settings.model_name_or_path)
    rows = tokenizer([text for text in documents["train"]["text"][:] if text.strip()], verbose=False)["input_ids"]
    if not rows:
        raise SettingsError(f"{settings.source!r} holds no text: name another source or another text_column.")
    return Lengths([len(ids) + 1 for ids in rows], {name: len(rows) for name, rows in documents.items()})


def shares_html(lengths: Lengths, settings: DataSettings) -> str:
    """Draw how much of a row is text when documents are padded to a block, and when they are packed."""
    padded, cut, packed = shares(lengths.tokens, settings.block_size)
    width = settings.block_size
    bars = [
        Bar(f"padded to {width}", padded, f"{100 * padded:.1f} % useful, and {100 * cut:.1f} % of the text cut away"),
        Bar("packed, as here", packed, f"{100 * packed:.1f} % useful, {sum(lengths.tokens) // width:,} blocks"),
    ]
    return (
        bar_chart(bars, title="Share of positions that hold text", colour=BLUE) + f"<p>{_told(lengths, settings)}</p>"
    )


def _told(lengths: Lengths, settings: DataSettings) -> str:
    """Say how many documents there are and where they go, or that a part of them stands for all."""
    if max(lengths.parts.values()) >= _MOST_DOCUMENTS:
        return f"From the first {_MOST_DOCUMENTS:,} documents of a larger source."
    split = ", ".join(f"{name} {n:,}" for name, n in split_sizes(lengths.parts, settings).items())
    return f"{sum(lengths.parts.values()):,} documents; split before repeated ones are left out: {split}."


def shares(tokens: list[int], block_size: int) -> tuple[float, float, float]:
    """Return the useful share of padded rows, the share of the text that they cut, and the useful share of packed rows.

    >>> shares([4, 12], 8)
    (0.75, 0.25, 1.0)
    """
    cut = sum(max(0, length - block_size) for length in tokens)
    whole = sum(tokens)
    return useful_share(tokens, block_size), cut / whole, 1.0 if whole >= block_size else 0.0


def split_sizes(parts: dict[str, int], settings: DataSettings) -> dict[str, int]:
    """Return how many documents each part gets; a source's own parts are kept, and what is missing is drawn.

    >>> split_sizes({"train": 40, "test": 9}, DataSettings(validation_share=0.1))
    {'train': 36, 'validation': 4, 'test': 9}
    """
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    drawn = {name: max(1, round(parts["train"] * share)) for name, share in shares.items() if name not in parts}
    sizes = parts | drawn | {"train": max(0, parts["train"] - sum(drawn.values()))}
    return {name: sizes[name] for name in SPLITS}
