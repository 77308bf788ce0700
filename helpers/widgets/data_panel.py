"""The data panel of notebook 02: the documents, their split, and how much of each row would be text."""

import html
import threading
from itertools import islice
from typing import NamedTuple

from helpers.data.quality_report import cut_share, useful_share
from helpers.data.sources import Source
from helpers.data.splitting import SPLITS
from helpers.display import cut
from helpers.model import load_tokenizer, train_tokenizer
from helpers.settings import DataSettings, SettingsError
from helpers.widgets.drawing import Bar, bar_chart
from helpers.widgets.panel import Panel, sentence_about

_MAX_DOCUMENTS = 2000  # read from each part: a complete source may take too long
_SHOWN_DOCUMENTS, _SHOWN_CHARACTERS = 3, 240
_SPLIT_FIELDS = {"run", "seed", "validation_share", "test_share", "block_size"}  # these do not change the documents


class Beginning(NamedTuple):
    """The first documents of each part of a source."""

    tokens: list[int]  # of each training document, end-of-text included
    parts: dict[str, int]  # the number of documents in each part
    choice: str = ""  # one line: what separates the documents, and why
    documents: tuple[str, ...] = ()  # the first three
    is_continuous: bool = False  # whether they are the passages of one text


class DataPanel(Panel):
    """A control for each data setting, the first documents, and how much of each row would be text.

    A source is read once, in the background, after the panel is shown.
    """

    def __init__(self, settings: DataSettings) -> None:
        DataSettings.check_type(settings)
        super().__init__(settings)
        # Settings that affect reading, as JSON -> the source's beginning, or the reason why it cannot be read.
        self._beginnings: dict[str, Beginning | str] = {}
        self._reading = threading.Lock()
        self.widget = self.frame(self.gauge, self._message, self.common_controls(), self.other_controls())
        self.refresh()

    def _show(self, settings: DataSettings) -> None:
        key = settings.model_dump_json(exclude=_SPLIT_FIELDS)
        beginning = self._beginnings.get(key)
        if isinstance(beginning, str):
            self._beginnings.pop(key, None)  # the next change tries again
            raise SettingsError(beginning)
        if beginning:
            self.gauge.value = documents_html(beginning) + shares_html(beginning, settings)
            return
        self.gauge.value = "<p>Reading the source and counting its tokens…</p>"
        # Read one source at a time; `refresh` then reads what the controls show by that time, and skips the rest.
        if self._reading.acquire(blocking=False):
            self.thread = threading.Thread(target=self._read, args=(key, settings), daemon=True)
            self.thread.start()

    def _read(self, key: str, settings: DataSettings) -> None:
        try:
            self._beginnings[key] = read_beginning(settings)
        except Exception as error:  # noqa: BLE001 (nobody sees an exception that ends a thread)
            self._beginnings[key] = sentence_about(error)
        self._reading.release()
        self.refresh()

    def _summary(self) -> str:
        self.thread.join()  # a page without a kernel never sees what comes later
        return self.gauge.value


def read_beginning(settings: DataSettings) -> Beginning:
    """Read the first documents of a source and count their tokens; raise `SettingsError` if it cannot be read."""
    source = Source(settings)
    parts = {part or "train": list(islice(filter(str.strip, texts), _MAX_DOCUMENTS)) for part, texts in source.parts()}
    if not (texts := parts["train"]):
        raise SettingsError(f"{settings.source!r} holds no text: name another source or another text_column.")
    # verbose=False below: no warning about documents longer than the model's positions, which are cut into blocks.
    if settings.tokenizer == "train":
        tokenizer = train_tokenizer(texts, vocab_size=settings.vocab_size)
    else:
        tokenizer = load_tokenizer(settings.model_name_or_path)
    rows = tokenizer(texts, verbose=False)["input_ids"]
    return Beginning(
        [len(ids) + (not source.is_continuous) for ids in rows],
        {name: len(part) for name, part in parts.items()},
        str(source.choice),
        tuple(texts[:_SHOWN_DOCUMENTS]),
        source.is_continuous,
    )


def documents_html(beginning: Beginning) -> str:
    """Return HTML with what separates the documents, and the first three of them."""
    what = "passages of one continuous text" if beginning.is_continuous else "documents"
    shown = "".join(
        f"<li><span style='white-space:pre-wrap'>{html.escape(cut(text.strip(), _SHOWN_CHARACTERS))}</span></li>"
        for text in beginning.documents
    )
    return f"<p>Documents end at {html.escape(beginning.choice)}. The first {what}:</p><ol>{shown}</ol>"


def shares_html(beginning: Beginning, settings: DataSettings) -> str:
    """Draw how much of each row is text when documents are padded to a block, and when they are packed."""
    width = settings.block_size
    padded, lost = useful_share(beginning.tokens, width), cut_share(beginning.tokens, width)
    packed = float(sum(beginning.tokens) >= width)  # packed rows are full
    bars = [
        Bar(f"padded to {width}", padded, f"{100 * padded:.1f}% useful, and {100 * lost:.1f}% of the text cut off"),
        Bar("packed, as here", packed, f"{100 * packed:.1f}% useful, {sum(beginning.tokens) // width:,} blocks"),
    ]
    return bar_chart(bars, title="Share of positions that hold text") + f"<p>{_documents_text(beginning, settings)}</p>"


def _documents_text(beginning: Beginning, settings: DataSettings) -> str:
    """Return a sentence with the number of documents in each part, or a note that only the first ones were read."""
    what = "passages" if beginning.is_continuous else "documents"
    if max(beginning.parts.values()) >= _MAX_DOCUMENTS:
        return f"From the first {_MAX_DOCUMENTS:,} {what} of a larger source."
    split = ", ".join(f"{name} {n:,}" for name, n in split_sizes(beginning.parts, settings).items())
    how = "split by position, about" if beginning.is_continuous else "repeated ones still included"
    return f"{sum(beginning.parts.values()):,} {what}; {how}: {split}."


def split_sizes(parts: dict[str, int], settings: DataSettings) -> dict[str, int]:
    """Return the number of documents in each part: a source's own parts are kept, missing ones come from `train`.

    >>> split_sizes({"train": 40, "test": 9}, DataSettings(validation_share=0.1))
    {'train': 36, 'validation': 4, 'test': 9}
    """
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    split_off = {name: max(1, round(parts["train"] * share)) for name, share in shares.items() if name not in parts}
    sizes = parts | split_off | {"train": max(0, parts["train"] - sum(split_off.values()))}
    return {name: sizes[name] for name in SPLITS}
