"""Read any source as a stream of documents: text files, tables, folders, saved data sets, Hub data sets.

- `source`: opens all parts of a source, as texts or as tables
- `paths`, `own_split`: which files a source has, and which part of its own split each belongs to
- `refused_files`, `encodings`: recognise files by their first bytes, and decode bytes to text
- `tables`, `rows`: read tables row by row, and find the column that holds the text
- `hub`: what the `datasets` library opens, from the Hub or saved on disk
- `documents`, `recognition`: cut texts and rows into documents; detect what separates them
- `chat`: write conversations as documents

A source is read in small pieces, so it may be larger than memory, and it is never changed.
"""

from helpers.data.sources.hub import newest_commit
from helpers.data.sources.paths import FABLES, check_source, public_name, source_hash, source_path
from helpers.data.sources.source import Source

__all__ = ["FABLES", "Source", "check_source", "newest_commit", "public_name", "source_hash", "source_path"]
