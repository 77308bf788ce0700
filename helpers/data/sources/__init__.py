"""Any source as a stream of documents: text files, tables, folders, saved data sets, data sets of the Hub.

`source` reads a source's parts: its files (`paths`, `splits`, `kinds`, `compression`, `encodings`), or what `datasets`
opens (`hub`), as texts or as `tables` with `rows`. `documents` cuts them at what separates documents, which
`recognition` finds out; `chat` writes conversations as documents.

At most one document and a megabyte of its file are in memory at a time, and a source is never changed.
"""

from helpers.data.sources.hub import newest_commit
from helpers.data.sources.paths import FABLES, check_source, source_hash, source_path
from helpers.data.sources.source import Source

__all__ = ["FABLES", "Source", "check_source", "newest_commit", "source_hash", "source_path"]
