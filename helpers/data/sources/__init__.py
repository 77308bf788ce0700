"""What a `source` names, read as a stream of documents: files, folders, tables, saved data sets, the Hub.

Nothing here holds more than one document and a megabyte of its file at a time, and nothing changes a source.
"""

from helpers.data.sources.paths import FABLES, source_hash, source_path
from helpers.data.sources.source import Source

__all__ = ["FABLES", "Source", "source_hash", "source_path"]
