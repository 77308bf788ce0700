"""The documents of a source, part by part: the one door to everything else in this package."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from helpers.data.sources.compression import read_chunks
from helpers.data.sources.encodings import decoded, find_encoding
from helpers.data.sources.hub import hub_tables, part_names, saved_files, saved_tables
from helpers.data.sources.paths import FABLES, is_saved_dataset, kind_of, source_files, source_path
from helpers.data.sources.tables import Row, csv_rows, find_column, json_lines, json_rows, parquet_rows, text_of
from helpers.data.sources.texts import split_text
from helpers.settings import DataSettings, SettingsError

_EXPANSION = {".gz": 3, ".zst": 3, ".parquet": 2}  # how much more text there is than bytes on disk; estimated


class Source:
    """A source, opened for reading once, from its first document to its last.

    Attributes:
        n_bytes: size of its files on disk; None where that is not known.
        encodings: how many text files were read in which encoding; it fills while they are read.
    """

    def __init__(self, settings: DataSettings) -> None:
        """Find the source, and raise `SettingsError` when it is not there."""
        self.settings, self.encodings = settings, Counter[str]()
        self._advance: Callable[[int], None] | None = None
        self._is_split = False
        self._path = source_path(settings.source)
        is_files = self._path is not None and not is_saved_dataset(self._path)
        self._files = source_files(self._path) if self._path and is_files else []
        self.n_bytes = sum(file.stat().st_size for file in self._files) or None

    def parts(self, *, advance: Callable[[int], None] | None = None) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield each part the source brings, `train`, `validation` or `test`, with its texts; '' is not split yet.

        An empty text stands for a row of a table in which there is none. `advance` is called with the bytes of the
        files that reading has passed.

        Raises:
            SettingsError: something cannot be read, there is no such split or column; the sentence says what to do.
        """
        self._advance = advance
        if self.settings.source == "python-reference":
            from pydoc_data.topics import topics

            yield "", iter(topics.values())
        elif self._files:
            for part, files in self._files_by_part():
                yield part, chain.from_iterable(map(self._texts, files))
        else:
            tables = saved_tables(self._path, self.settings) if self._path else hub_tables(self.settings)
            for part, rows in part_names(tables, self.settings):
                yield part, self._texts_of(self.settings.source, rows)

    def size_by_part(self) -> dict[str, int]:
        """Return about how many bytes of text each part holds, '' what is not split yet; {} where it is not on disk.

        Only the files' sizes are looked at, so that other columns of a table count too.

        Raises:
            SettingsError: there is no such split.
        """
        if self.settings.source == "python-reference":
            from pydoc_data.topics import topics

            return {"": sum(map(len, topics.values()))}
        parts = self._files_by_part() if self._files else []
        if self._path and not self._files:
            parts = part_names(saved_files(self._path), self.settings)
        return {
            part: sum(file.stat().st_size * _EXPANSION.get(file.suffix.lower(), 1) for file in files)
            for part, files in parts
        }

    def _files_by_part(self) -> list[tuple[str, list[Path]]]:
        """Return the files by part, where each is named as a part is, such as `train-00.jsonl` and `test.txt`."""
        named: dict[str, list[Path]] = {}
        for file in self._files:
            named.setdefault(re.split(r"[.-]", file.name, maxsplit=1)[0].lower(), []).append(file)
        try:
            parts = part_names(named, self.settings)
        except SettingsError:
            if self.settings.source_split:
                raise
            parts = []
        self._is_split = len(parts) == len(named) > 1 or bool(self.settings.source_split)
        return parts if self._is_split else [("", self._files)]

    def _texts(self, file: Path) -> Iterator[str]:
        if self._path == FABLES:
            return self._fables(file)
        if kind_of(file) == ".parquet":
            return self._texts_of(str(file), parquet_rows(file, self.settings.text_column, advance=self._advance))
        if kind_of(file) in (".csv", ".tsv"):
            delimiter = "\t" if kind_of(file) == ".tsv" else None
            return self._texts_of(str(file), csv_rows(str(file), self._decoded(file), delimiter=delimiter))
        if kind_of(file) in (".json", ".jsonl", ".ndjson"):
            read = json_rows if kind_of(file) == ".json" else json_lines
            return self._texts_of(str(file), read(str(file), self._decoded(file)))
        separator = self.settings.document_separator
        if separator == "auto":
            separator = "blank line" if len(self._files) == 1 or self._is_split else "file"
        return split_text(self._decoded(file), separator, name=str(file))

    def _fables(self, file: Path) -> Iterator[str]:
        """Yield each fable as title, story and moral; a heading starts one."""
        markdown = "".join(self._decoded(file))
        return (fable.strip() for fable in re.split(r"^# ", markdown, flags=re.MULTILINE)[1:])

    def _decoded(self, file: Path) -> Iterator[str]:
        encoding = self.settings.encoding
        if encoding == "auto":
            encoding = find_encoding(file, read_chunks(file))
        self.encodings[encoding] += 1
        return decoded(file, read_chunks(file, advance=self._advance), encoding)

    def _texts_of(self, name: str, rows: Iterable[Row]) -> Iterator[str]:
        column = ""
        for row in rows:
            column = column or find_column(row[1], self.settings.text_column, name=name)
            yield _whole_letters(text_of(row, column, name=name))


def _whole_letters(text: str) -> str:
    """Put U+FFFD for half a character, which JSON can hold and no encoding can write."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
