"""Open the files and tables of a source, and read its documents part by part.

`helpers.data.sources.documents` defines what a document is, `recognition` what `document_separator='auto'` means.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import NamedTuple

from helpers.data.sources.chat import chat_columns, render_row
from helpers.data.sources.documents import passages, replace_lone_surrogates, row_documents, row_lines, text_documents
from helpers.data.sources.encodings import decode, find_encoding, read_chunks
from helpers.data.sources.hub import open_from_hub, open_saved
from helpers.data.sources.own_split import divide_files, name_parts
from helpers.data.sources.paths import FABLES, TABLES, is_saved_dataset, kind_of, source_files, source_path
from helpers.data.sources.recognition import SAMPLE_CHARACTERS, SAMPLE_ROWS, Choice, recognise
from helpers.data.sources.refused_files import refuse_other_kinds
from helpers.data.sources.rows import Row, csv_rows, json_rows
from helpers.data.sources.tables import (
    Table,
    find_text_column,
    parquet_table,
    peek_columns,
    rows_of_one_part,
    text_of,
)
from helpers.settings import DataSettings, SettingsError

_SHARD = re.compile(r"-\d+-of-\d+")
_EXPANSION = {".gz": 3, ".zst": 3, ".parquet": 2}  # estimated bytes of text per byte on disk


class _Stream(NamedTuple):
    """One text or table: its name in errors, whether it is a table, and its chunks or the texts of its rows."""

    name: str
    is_table: bool
    read: Callable[[], Iterator[str]]


class Source:
    """A source, read once from its first document to its last.

    Attributes:
        encodings: the number of text files per encoding, counted as they are read.
        is_continuous: whether it is one text in passages rather than documents.
        is_chat: whether it holds conversations.
        choice: what separates its documents, and why. It and the two before are known once `parts` yields a part.
    """

    def __init__(self, settings: DataSettings) -> None:
        """Find the source; raise `SettingsError` if it does not exist."""
        self.settings, self.encodings = settings, Counter[str]()
        self.is_continuous = False
        self.choice: Choice | None = None
        self._n_columns = self._n_texts = 1
        self.is_chat: bool | None = None
        self._notes: dict[str, dict[str, None]] = {}  # a sentence -> the places it is about ('' if none)
        self._path = source_path(settings.source)
        is_files = self._path is not None and not is_saved_dataset(self._path)
        self._files = source_files(self._path) if self._path and is_files else []

    def parts(self) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield each part of the source with its texts: `train`, `validation`, `test`, or '' if not split yet.

        The texts are documents, or the passages of one continuous text; a table row without text gives an empty
        string.

        Raises:
            SettingsError: something cannot be read, or there is no such split or column.
        """
        parts = self._streams_by_part()
        if len({stream.is_table for streams in parts.values() for stream in streams}) > 1:
            raise SettingsError(
                f"{self.settings.source!r} holds texts and tables, which cannot share one document_separator: set "
                "source to a folder with one of the two kinds."
            )
        self._n_texts = max(sum(not stream.is_table for stream in streams) for streams in parts.values())
        is_alone = all(len(streams) == 1 for streams in parts.values())
        if self.settings.streaming:  # shard by shard, as in training: otherwise documents would have other rows
            by_shard = self._streams_by_part(by_shard=True)
            parts |= {part: by_shard[part] for part in ("", "train") if part in parts}
        for part, streams in parts.items():
            documents = (self._documents(stream, is_alone=is_alone) for stream in streams)
            # Open the first one now: it decides how the documents of this part are stored.
            first = next(documents)
            yield part, chain(first, chain.from_iterable(documents))

    def training_shards(self, *, is_continuous: bool) -> list[Callable[[], Iterator[str]]]:
        """Return a function per shard of the training text (a file or a Hub shard) that reads all its documents."""
        parts = self._streams_by_part(by_shard=True)
        streams = parts.get("train", parts.get("", []))
        return [partial(self._documents, stream, is_alone=is_continuous) for stream in streams]

    def rows_of(self, part: str) -> Iterator[str] | None:
        """Return the texts of a part's rows unchanged, including empty ones; None if it is no table or no part."""
        streams = self._streams_by_part().get(part, [])
        is_table = streams and all(stream.is_table for stream in streams)
        return chain.from_iterable(stream.read() for stream in streams) if is_table else None

    def _streams_by_part(self, *, by_shard: bool = False) -> dict[str, list[_Stream]]:
        """Return the texts and tables of each part; unless `by_shard`, files such as `a-00000-of-00002` are one."""
        source = self.settings.source
        if source == "python-reference":
            return name_parts({"all": [_Stream(source, True, lambda: iter(_python_reference()))]}, self.settings)
        if self._files:
            text_of_file = (lambda file: file) if by_shard else lambda file: _SHARD.sub("", str(file))
            return {
                part: [self._file_stream(list(shards)) for _, shards in groupby(files, text_of_file)]
                for part, files in self._files_by_part.items()
            }
        is_saved = self._path is not None
        tables = open_saved(self._path, self.settings) if is_saved else open_from_hub(self.settings, by_shard=by_shard)
        parts = name_parts(tables, self.settings)
        if unread := [name for name, shards in tables.items() if all(shards is not read for read in parts.values())]:
            self.note(f"Left out (in no part of the split): {', '.join(unread)}.")
        return {
            part: [_Stream(source, True, partial(self._texts, open_table)) for open_table in shards]
            for part, shards in parts.items()
        }

    @property
    def has_prompts(self) -> bool:
        """Whether its documents have prompts that are not learned; known once `parts` yields a part."""
        return bool(self.is_chat) and self.settings.train_on != "all" and not self.settings.streaming

    @property
    def notes(self) -> list[str]:
        """Sentences about what may have been misread; reading the source adds more."""
        notes = []
        for sentence, (file, *others) in self._notes.items():
            more = f" and {len(others):,} more" if others else ""
            notes.append(f"{file}{more}: {sentence}" if file else sentence)
        return notes

    def note(self, sentence: str, *, file: str = "") -> None:
        """Add a sentence to the notes; if it is about several files, or places in files, it appears once."""
        self._notes.setdefault(sentence, {})[file] = None

    def estimate_bytes(self) -> int:
        """Estimate the bytes of text from the sizes of its files, with all columns of a table; 0 if not on disk."""
        if self.settings.source == "python-reference":
            return sum(map(len, _python_reference()))
        files = self._files or (self._path.rglob("data-*.arrow") if self._path else ())
        return sum(file.stat().st_size * _EXPANSION.get(file.suffix.lower(), 1) for file in files)

    @cached_property
    def _files_by_part(self) -> dict[str, list[Path]]:
        """The files of each part."""
        if self._path in (FABLES, *self._files):
            parts = name_parts({"all": self._files}, self.settings)
        else:
            parts = divide_files(self._path, self._files, self.settings, self.note)
        refuse_other_kinds(chain.from_iterable(parts.values()))  # not after hours of reading
        return parts

    def _file_stream(self, files: Sequence[Path]) -> _Stream:
        """Return the text or table in these files."""
        is_table = kind_of(files[0]) in TABLES
        return _Stream(str(files[0]), is_table, partial(self._table_texts if is_table else self._text_chunks, files))

    def _table_texts(self, files: Sequence[Path]) -> Iterator[str]:
        return chain.from_iterable(self._texts(partial(self._open_table, file)) for file in files)

    def _open_table(self, file: Path) -> Table:
        kind, name = kind_of(file), str(file)
        if kind == ".parquet":
            return parquet_table(file)
        text = self._decode(file)
        if kind in (".csv", ".tsv"):
            delimiter = "\t" if kind == ".tsv" else ","
            return peek_columns(name, csv_rows(name, text, delimiter=delimiter, note=self.note))
        return peek_columns(name, json_rows(name, text))

    def _texts(self, open_table: Callable[[], Table]) -> Iterator[str]:
        """Return the texts of a table's rows."""
        table = open_table()
        self._n_columns = len(table.columns)
        columns = chat_columns(table.columns, self.settings.text_column)
        self._set_chat(bool(columns), table.name)
        if columns:
            learned = "only what the assistant says is learned" if self.has_prompts else "all of it is learned"
            self.note(f"each row is a conversation, from its columns {list(columns)}; {learned}.", file=table.name)
            return (self._conversation(row, columns, table.name) for row in rows_of_one_part(table, columns))
        column = find_text_column(table, self.settings.text_column)
        if not self.settings.text_column and column != "text" and len(table.columns) > 1:
            self.note(f"the text is column {column!r} of {list(table.columns)[:20]}.", file=table.name)
        return (
            replace_lone_surrogates(text_of(row, column, name=table.name)) for row in rows_of_one_part(table, [column])
        )

    def _set_chat(self, is_chat: bool, name: str) -> None:
        if self.settings.train_on == "completion" and not is_chat:
            raise SettingsError(
                f"train_on = 'completion' needs chat data, such as a column of messages or the columns prompt and "
                f"completion, and {name!r} has none: set train_on to 'all'."
            )
        if self.settings.train_on == "auto" and self.is_chat not in (None, is_chat):
            raise SettingsError(
                f"{self.settings.source!r} holds conversations and other text (the first change is at {name}): set "
                "source to one of them, or train_on to 'all' to learn both, questions included."
            )
        self.is_chat = bool(self.is_chat or is_chat)

    def _conversation(self, row: Row, columns: Sequence[str], name: str) -> str:
        place, values = row
        try:
            return render_row(values, columns, self.settings.chat_template)
        except SettingsError as error:
            raise SettingsError(f"{name}, {place}: {error}. Fix the row, or set text_column.") from None

    def _text_chunks(self, files: Sequence[Path]) -> Iterator[str]:
        return chain(["\n"] if self._path == FABLES else [], chain.from_iterable(map(self._decode, files)))

    def _documents(self, stream: _Stream, *, is_alone: bool = False) -> Iterator[str]:
        """Return the documents of one text or table; the first one decides the separator."""
        pieces = stream.read()
        sample = list(take_pieces(pieces, SAMPLE_CHARACTERS, SAMPLE_ROWS if stream.is_table else None))
        pieces = chain(sample, pieces)
        if self.is_chat is None:  # most tables were looked at when they were opened
            self._set_chat(False, stream.name)
        if self.choice is None:
            rows = sample if stream.is_table else "".join(sample).split("\n")
            self.choice = self._choose(rows, is_table=stream.is_table)
        separator = self.choice.separator
        if separator == "file" and is_alone:
            self.is_continuous = True
            return passages(row_lines(pieces) if stream.is_table else pieces)
        split = row_documents if stream.is_table else text_documents
        return split(pieces, separator, name=stream.name)

    def _choose(self, rows: Sequence[str], *, is_table: bool) -> Choice:
        if is_table and self.is_chat:
            if self.settings.document_separator not in ("auto", "row", "line"):
                raise SettingsError("Each row of chat data is a conversation: leave document_separator at 'auto'.")
            return Choice("row", "each row is a conversation")
        if self.settings.document_separator != "auto":
            return Choice(self.settings.document_separator, "")
        if self._path == FABLES:
            return Choice("\n# ", "a heading starts a fable")
        if self.settings.source == "python-reference":
            return Choice("row", "it is a table of chapters")
        if not is_table and len(rows) > 100:
            rows = rows[:-1]  # the last line may be incomplete
        return recognise(rows, is_table=is_table, n_columns=self._n_columns, n_files=self._n_texts)

    def _decode(self, file: Path) -> Iterator[str]:
        encoding = self.settings.encoding
        if encoding == "auto":
            encoding = find_encoding(file, read_chunks(file))
        self.encodings[encoding] += 1
        return decode(file, read_chunks(file), encoding)


def take_pieces(pieces: Iterator[str], n_characters: int, n_pieces: int | None = None) -> Iterator[str]:
    """Yield the first `n_pieces` pieces, or fewer once they have `n_characters` characters."""
    for piece in islice(pieces, n_pieces):
        yield piece
        n_characters -= len(piece)
        if n_characters <= 0:
            return


def _python_reference() -> Iterable[str]:
    """Return the chapters of Python's language reference, which comes with every Python."""
    from pydoc_data.topics import topics

    return topics.values()
