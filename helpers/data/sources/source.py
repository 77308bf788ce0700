"""The documents of a source, part by part: how its files and tables become documents is decided here.

A row of a table is a document; a text file is cut into documents by `helpers.data.sources.texts`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

from helpers.data.sources.compression import read_chunks
from helpers.data.sources.encodings import decode, find_encoding
from helpers.data.sources.hub import open_from_hub, open_saved, saved_files
from helpers.data.sources.kinds import refuse_other_kinds
from helpers.data.sources.paths import FABLES, TABLES, is_saved_dataset, kind_of, source_files, source_path
from helpers.data.sources.splits import Division, divide_files, name_parts
from helpers.data.sources.tables import Row, find_text_column, holds_words, parquet_rows, text_of, text_rows
from helpers.data.sources.texts import split_text
from helpers.settings import DataSettings

_EXPANSION = {".gz": 3, ".zst": 3, ".parquet": 2}  # estimated bytes of text for a byte on disk


class Source:
    """A source, to be read once, from its first document to its last.

    Attributes:
        n_bytes: size of its files on disk; None where that is not known.
        encodings: how many text files were read in which encoding; counted while they are read.
        notes: a sentence for each thing that may have been misread, such as files that are left out.
    """

    def __init__(self, settings: DataSettings) -> None:
        """Look for the source; raise `SettingsError` when it does not exist."""
        self.settings, self.encodings = settings, Counter[str]()
        self.notes: list[str] = []
        self._advance: Callable[[int], None] | None = None
        self._path = source_path(settings.source)
        is_files = self._path is not None and not is_saved_dataset(self._path)
        self._files = source_files(self._path) if self._path and is_files else []
        self.n_bytes = sum(file.stat().st_size for file in self._files) or None

    def parts(self, *, advance: Callable[[int], None] | None = None) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield each part of the source with its texts: `train`, `validation`, `test`, or '' for what is not split yet.

        Args:
            advance: called with the bytes of the files that were read since the last call.

        Yields:
            The part's name and its documents; a table's row without text gives an empty one.

        Raises:
            SettingsError: something cannot be read, or there is no such split or column.
        """
        self._advance = advance
        if self.settings.source == "python-reference":
            yield "", iter(_python_reference())
        elif self._files:
            self.notes += self._division.notes
            for file in chain.from_iterable(files for _, files in self._files_by_part):
                refuse_other_kinds(file)  # now, and not after hours of reading
            for part, files in self._files_by_part:
                yield part, chain.from_iterable(map(self._documents, files))
        else:
            tables = open_saved(self._path, self.settings) if self._path else open_from_hub(self.settings)
            for part, rows in name_parts(tables, self.settings):
                yield part, self._texts_of_rows(self.settings.source, rows)

    def size_by_part(self) -> dict[str, int]:
        """Estimate the bytes of text in each part, '' for what is not split yet; {} when the source is not on disk.

        The estimate is made from file sizes alone, so a table's other columns count too.

        Raises:
            SettingsError: there is no such split.
        """
        if self.settings.source == "python-reference":
            return {"": sum(map(len, _python_reference()))}
        parts = self._files_by_part if self._files else []
        if self._path and not self._files:
            parts = name_parts(saved_files(self._path), self.settings)
        return {
            part: sum(file.stat().st_size * _EXPANSION.get(file.suffix.lower(), 1) for file in files)
            for part, files in parts
        }

    @cached_property
    def _division(self) -> Division:
        """The files of each part, and notes on the others."""
        if not self._files or self._path in (FABLES, *self._files):
            return Division({"": self._files}, [])
        return divide_files(self._path, self._files, self.settings)

    @property
    def _files_by_part(self) -> list[tuple[str, list[Path]]]:
        return list(self._division.parts.items())

    # What is a document? These three methods decide it.

    def _documents(self, file: Path) -> Iterator[str]:
        """Yield the documents of one file: the rows of a table, the pieces of a text."""
        kind, column = kind_of(file), self.settings.text_column
        if kind == ".parquet":
            return self._texts_of_rows(str(file), parquet_rows(file, column, advance=self._advance))
        if kind in TABLES:
            return self._texts_of_rows(str(file), text_rows(kind, str(file), self._decode(file)))
        if self._path == FABLES:  # a heading starts a fable: title, story and moral are one document
            return split_text(chain(["\n"], self._decode(file)), "\n# ", name=str(file))
        return split_text(self._decode(file), self._separator(), name=str(file))

    def _separator(self) -> str:
        """Return what separates the documents of a text file: the setting, or what `auto` means for this source.

        Many files are probably documents each; in a single file, or one file for each part, blank lines must do.
        """
        if self.settings.document_separator != "auto":
            return self.settings.document_separator
        is_split = bool(self.settings.source_split) or self._files_by_part[0][0] != ""
        return "blank line" if len(self._files) == 1 or is_split else "file"

    def _texts_of_rows(self, name: str, rows: Iterable[Row]) -> Iterator[str]:
        column = ""
        for row in rows:
            if not column:
                columns = {key: holds_words(value) for key, value in row[1].items()}
                column = find_text_column(columns, self.settings.text_column, name=name)
            yield _replace_half_characters(text_of(row, column, name=name))

    def _decode(self, file: Path) -> Iterator[str]:
        encoding = self.settings.encoding
        if encoding == "auto":
            encoding = find_encoding(file, read_chunks(file))
        self.encodings[encoding] += 1
        return decode(file, read_chunks(file, advance=self._advance), encoding)


def _python_reference() -> Iterable[str]:
    """Return the chapters of Python's language reference, which every Python brings along."""
    from pydoc_data.topics import topics

    return topics.values()


def _replace_half_characters(text: str) -> str:
    """Replace half of a surrogate pair with U+FFFD: JSON can hold one, but no encoding can write it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
