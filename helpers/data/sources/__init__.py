"""Any source as a stream of documents: text files, tables, folders, saved data sets, data sets of the Hub.

- `source`: opens all parts of a source, as texts or as tables
- `paths`, `own_split`: which files a source has, and which part of its own split each of them is
- `refused_files`, `encodings`: what a file is by its bytes, and these as text
- `tables`, `rows`: tables row by row, and the column that holds the text
- `hub`: what the library `datasets` opens, from the Hub or saved on disk
- `documents`, `recognition`: cut texts and rows into documents; find out what separates these
- `chat`: write conversations as documents

At most one document and a megabyte of its file are in memory at a time, and a source is never changed.
"""

from helpers.data.sources.hub import newest_commit
from helpers.data.sources.paths import FABLES, check_source, public_name, source_hash, source_path
from helpers.data.sources.source import Source

__all__ = ["FABLES", "Source", "check_source", "newest_commit", "public_name", "source_hash", "source_path"]
