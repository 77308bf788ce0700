"""Write a source to the files of a run in two passes, with only one batch of text in memory.

1. `Staging`: each document is read and tokenised once, and stored on disk until all of them are known.
2. `write_parts`: the staged documents are read again in the same order, and each goes to its part of the split.

Why not `Dataset.from_generator` and `save_to_disk`: they write every row twice, once to a cache and once to the folder.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helpers.data.duplicates import Fingerprints
from helpers.data.leakage import Leakage
from helpers.data.packing import BLOCK_COLUMNS, IGNORED, block_batch, check_enough, cut_blocks, training_stream
from helpers.data.sources.chat import Dialogue
from helpers.data.splitting import SPLITS, TEST, TRAIN, UNDECIDED
from helpers.data.tokens import TokenStream, batches_of
from helpers.settings import DataSettings, SettingsError

TOKENIZER_CHARACTERS = 10**8  # to train a tokenizer on: more text would hardly change the frequent pairs
BORDERS = pa.list_(pa.int32())
_ROWS_FILE = "data-00000-of-00001.arrow"  # the name that `datasets` gives it


def document_schema(*, has_prompts: bool) -> pa.Schema:
    """Return the columns of documents: their text and, with prompts, where prompt and completion alternate."""
    return pa.schema([("text", pa.string()), *([("borders", BORDERS)] if has_prompts else [])])


class Staging(ExitStack):
    """Stores the documents of a source until they are split; as a context manager it closes its files.

    Texts and tokens are kept in files of an empty folder. `fingerprints` gets every document, to find duplicates
    afterwards.

    Attributes (the arrays exist after `finish`):
        parts: each document's part in the source's own split: an index into `SPLITS`, or `UNDECIDED`. (documents,)
        n_tokens: tokens of each document, including its end-of-text token if it has one. (documents,)
        n_bytes: bytes of each document in UTF-8. (documents,)
        n_characters: characters of all documents.
        n_empty: documents without text, which were left out.
        is_continuous: whether the documents are passages of one text, with no end-of-text token between them.
        has_prompts: whether they are dialogues whose prompts are not learned. Set both before the first `add`.
    """

    def __init__(self, folder: Path, tokens: TokenStream, fingerprints: Fingerprints) -> None:
        super().__init__()
        self._folder, self._tokens, self._fingerprints = folder, tokens, fingerprints
        self.n_characters = self.n_empty = 0
        self.is_continuous = self.has_prompts = False
        self._rows = [(np.empty(0, np.int8), np.empty(0, np.int32), np.empty(0, np.int32))]
        self._token_file = self.enter_context((folder / "tokens").open("wb"))
        self._prompt_file = self.enter_context((folder / "prompts").open("wb"))  # a byte per token: is it in a prompt?

    @cached_property
    def _texts(self) -> pa.ipc.RecordBatchStreamWriter:
        file = self.enter_context(pa.OSFile(str(self._folder / "texts"), "wb"))
        return self.enter_context(pa.ipc.new_stream(file, document_schema(has_prompts=self.has_prompts)))

    def add(self, texts: Iterable[str], part: str, *, budget: int = 0, on_batch: Callable[[int, int], None]) -> bool:
        """Tokenise and store the documents of a part; return whether the budget ended it.

        Args:
            texts: empty ones are counted and left out.
            part: 'train', 'validation' or 'test', or '' for text still to be split.
            budget: maximum number of tokens, in complete documents but at least one document; 0: no limit.
            on_batch: called for each batch with its bytes of text and its number of tokens.
        """
        n_left = budget
        for unfiltered in batches_of(texts):
            indices = [index for index, text in enumerate(unfiltered) if text and not text.isspace()]
            batch = [unfiltered[index] for index in indices]
            if not batch:
                self.n_empty += len(unfiltered)
                continue
            ids, n_tokens, is_prompt = self._encode(self._tokens, batch)
            n_taken = int(np.searchsorted(n_tokens.cumsum(), n_left, "right")) if budget else len(batch)
            if not n_taken:
                if n_left < budget:
                    return True
                n_taken = 1  # if the first document exceeds the budget, keep it: otherwise nothing would be left
            ids = ids[: n_tokens[:n_taken].sum()]
            self._prompt_file.write(is_prompt[: len(ids)].tobytes())
            on_batch(self._add_batch(batch[:n_taken], ids, n_tokens[:n_taken], part), len(ids))
            self.n_empty += (len(unfiltered) if n_taken == len(batch) else indices[n_taken - 1] + 1) - n_taken
            n_left -= len(ids)
            if budget and (n_taken < len(batch) or n_left <= 0):
                return True
        return False

    def _encode(self, tokens: TokenStream, batch: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.has_prompts:
            return tokens.encode_dialogues(batch)
        return *tokens.encode(batch, with_ends=not self.is_continuous), np.empty(0, bool)

    def _add_batch(self, batch: list[str], ids: np.ndarray, n_tokens: np.ndarray, part: str) -> int:
        texts = pa.array(batch, pa.string())
        n_bytes = pc.binary_length(texts).to_numpy()
        columns = [texts, pa.array([text.borders for text in batch], BORDERS)] if self.has_prompts else [texts]
        schema = document_schema(has_prompts=self.has_prompts)
        self._texts.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        self._token_file.write(memoryview(ids))
        self._fingerprints.add(batch)
        parts = np.full(len(batch), SPLITS.index(part) if part else UNDECIDED, np.int8)
        # Only these 9 bytes per document stay in memory.
        self._rows.append((parts, n_tokens.astype(np.int32), n_bytes))
        self.n_characters += sum(map(len, batch))
        return int(n_bytes.sum())

    def finish(self) -> None:
        """End the first pass: close the files so that they can be read."""
        self._texts.close()  # without documents, this creates the file
        self.close()
        self.parts, self.n_tokens, self.n_bytes = map(np.concatenate, zip(*self._rows, strict=True))
        self._rows = []

    def training_texts(self, part: np.ndarray) -> Iterator[str]:
        """Yield the texts of the training part, up to `TOKENIZER_CHARACTERS`, to train a tokenizer on."""
        n_characters = 0
        for texts, _, _, documents in self.batches():
            for text in texts.filter(pa.array(part[documents] == TRAIN)).column("text").to_pylist():
                if n_characters >= TOKENIZER_CHARACTERS:
                    return
                n_characters += len(text)
                yield text

    def reencode(self, tokens: TokenStream) -> None:
        """Replace the staged tokens with those of a tokenizer that was trained on the staged text."""
        n_tokens = [np.empty(0, np.int32)]
        with (self._folder / "new-tokens").open("wb") as ids_file, (self._folder / "new-prompts").open("wb") as prompts:
            for texts, *_ in self.batches():
                batch = texts.column("text").to_pylist()
                if self.has_prompts:
                    batch = [Dialogue(*pair) for pair in zip(batch, texts.column("borders").to_pylist(), strict=True)]
                ids, counts, is_prompt = self._encode(tokens, batch)
                ids_file.write(memoryview(ids))
                prompts.write(is_prompt.tobytes())
                n_tokens.append(counts.astype(np.int32))
        for name in ("tokens", "prompts"):
            (self._folder / f"new-{name}").replace(self._folder / name)
        self._tokens, self.n_tokens = tokens, np.concatenate(n_tokens)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray, slice]]:
        """Yield batches: documents, their concatenated tokens, which tokens are a prompt's, and the documents' slice.

        Without prompts, the third is an empty array.
        """
        start = 0
        # Read the files instead of memory-mapping them, so that each batch is freed after use.
        with (
            (self._folder / "tokens").open("rb") as token_file,
            (self._folder / "prompts").open("rb") as prompt_file,
            pa.OSFile(str(self._folder / "texts"), "rb") as text_file,
            pa.ipc.open_stream(text_file) as batches,
        ):
            for texts in batches:
                documents = slice(start, start + texts.num_rows)
                n_tokens = int(self.n_tokens[documents].sum())
                ids = np.fromfile(token_file, self._tokens.dtype, n_tokens)
                yield texts, ids, np.fromfile(prompt_file, bool, n_tokens), documents
                start = documents.stop

    def measure_leakage(self, part: np.ndarray) -> Leakage:
        """Return a `Leakage` that already has the test's n-grams and still needs the training text."""
        leakage = Leakage(int(self.n_tokens[part == TEST].sum()), self._tokens.eos)
        for _, ids, _, documents in self.batches():
            leakage.add_test(ids[np.repeat(part[documents] == TEST, self.n_tokens[documents])])
        return leakage


def write_parts(staging: Staging, part: np.ndarray, settings: DataSettings, folder: Path) -> dict[str, Any]:
    """Write the documents of each part, and the blocks of the training and validation parts.

    `part` is the part of each document. (documents,) Returns the `splits` (facts about each part) and the `leakage` of
    `data.json`.

    Raises:
        SettingsError: a part has less than one block.
    """
    leakage = staging.measure_leakage(part)
    with ExitStack() as stack:
        writers = [stack.enter_context(PartWriter(name, settings, folder, staging=staging)) for name in SPLITS]
        for texts, ids, is_prompt, documents in staging.batches():
            for index, writer in enumerate(writers):
                in_part = part[documents] == index
                token_in_part = np.repeat(in_part, staging.n_tokens[documents])
                part_ids, prompts = ids[token_in_part], is_prompt[token_in_part] if len(is_prompt) else None
                writer.add(texts.filter(pa.array(in_part)), part_ids, staging.n_tokens[documents][in_part], prompts)
                if index == TRAIN:
                    leakage.add_train(part_ids)
        splits = {writer.name: writer.finish() for writer in writers}
    for kind, names in (("blocks", [name for name in SPLITS if name != "test"]), ("documents", list(SPLITS))):
        (folder / kind / "dataset_dict.json").write_text(json.dumps({"splits": names}), encoding="utf-8")
    return {"splits": splits, "leakage": leakage.facts}


class PartWriter(ExitStack):
    """Writes one part of the split: its documents and, except for the test, its blocks."""

    def __init__(self, name: str, settings: DataSettings, folder: Path, *, staging: Staging) -> None:
        super().__init__()
        self.name, self._digest = name, hashlib.sha256()
        self._n_bytes = self._n_tokens = 0
        self._is_continuous = staging.is_continuous
        schema = document_schema(has_prompts=staging.has_prompts).append(pa.field("n_tokens", pa.int32()))
        if staging.is_continuous:  # each row continues in the next
            schema = schema.append(pa.field("continues", pa.bool_()))
        self._documents = self.enter_context(TableWriter(folder / "documents" / name, schema))
        self._blocks: BlockWriter | None = None
        if name != "test":  # the test is scored by sliding windows over its documents, not in blocks
            writer = BlockWriter(folder / "blocks" / name, settings.block_size, has_labels=staging.has_prompts)
            self._blocks = self.enter_context(writer)

    def add(
        self, documents: pa.RecordBatch, ids: np.ndarray, n_tokens: np.ndarray, is_prompt: np.ndarray | None
    ) -> None:
        """Add documents, their concatenated tokens (tokens,), and the number of tokens in each (documents,).

        `is_prompt` marks the tokens that are not learned (tokens,); None: all are learned.
        """
        documents = documents.append_column("n_tokens", pa.array(n_tokens, pa.int32()))
        if self._is_continuous:
            documents = documents.append_column("continues", pa.array(np.ones(len(n_tokens), bool)))
        self._documents.write(documents)
        for text in documents.column("text"):
            encoded = text.as_buffer()
            self._digest.update(encoded)
            self._digest.update(b"\0")  # so that moving the boundary between two documents changes the hash
            self._n_bytes += encoded.size
        self._n_tokens += len(ids)
        if self._blocks:
            self._blocks.add(ids, is_prompt)

    def finish(self) -> dict[str, Any]:
        """Complete the folders and return the counts; raise `SettingsError` if there is less than one block."""
        sha256 = self._digest.hexdigest()
        counts: dict[str, Any] = {"documents": self._documents.n_rows, "bytes": self._n_bytes}
        counts |= {"sha256": sha256, "tokens": self._n_tokens}
        if self._blocks:
            block_size, n_blocks = self._blocks.block_size, self._blocks.n_rows
            check_enough(self.name, self._n_tokens, block_size)
            counts |= {"blocks": n_blocks, "tokens_dropped": self._n_tokens - n_blocks * block_size}
            if self._blocks.has_labels:
                if not n_blocks:
                    raise SettingsError(
                        f"No block of the {self.name} text contains a completion: use more text, or train_on = 'all'."
                    )
                counts["labels"] = self._blocks.n_labels
            self._blocks.finish(f"{block_size}-{sha256}-{self._blocks.n_labels}")  # other blocks mean other content
        self._documents.finish(sha256)
        return counts


class TableWriter(ExitStack):
    """Writes a folder for `datasets.load_from_disk`, batch by batch; as a context manager it closes its file.

    With `torch`, the data set returns torch tensors.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, torch: bool = False) -> None:
        from datasets import Dataset

        super().__init__()
        folder.mkdir(parents=True)
        self._folder, self.n_rows = folder, 0
        self._empty = Dataset(schema.empty_table()).with_format("torch" if torch else None)
        self._schema = self._empty.features.arrow_schema  # includes the library's metadata
        file = self.enter_context(pa.OSFile(str(folder / _ROWS_FILE), "wb"))
        self._rows = self.enter_context(pa.ipc.new_stream(file, self._schema))

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch."""
        if batch.num_rows:
            self._rows.write_batch(batch.cast(self._schema))
            self.n_rows += batch.num_rows

    def finish(self, fingerprint: str) -> None:
        """Complete the folder; different content needs a different `fingerprint`: the library's caches depend on it."""
        from datasets import Dataset

        self.close()
        named = Dataset(self._empty.data, fingerprint=fingerprint).with_format(self._empty.format["type"])
        # Saving an empty data set writes its metadata files, but no rows and no name of a file with rows.
        named.save_to_disk(self._folder)
        state = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
        state["_data_files"] = [{"filename": _ROWS_FILE}]
        (self._folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


class BlockWriter(TableWriter):
    """Writes a stream of tokens as rows of `block_size`; an incomplete last row is kept for the next call.

    With `has_labels` it also writes `labels`: the tokens, or IGNORED in prompts.
    """

    def __init__(self, folder: Path, block_size: int, *, has_labels: bool = False) -> None:
        names = BLOCK_COLUMNS if has_labels else BLOCK_COLUMNS[:1]
        schema = pa.schema([(name, pa.list_(pa.int32(), block_size)) for name in names])
        super().__init__(folder, schema, torch=True)
        self.block_size, self.has_labels, self.n_labels = block_size, has_labels, 0
        self._rest = np.empty((len(names), 0), np.int32)

    def add(self, ids: np.ndarray, is_prompt: np.ndarray | None = None) -> None:
        """Continue the stream. ids: (tokens,); is_prompt: (tokens,) bool."""
        stream = np.concatenate([self._rest, training_stream(ids, is_prompt if self.has_labels else None)], axis=1)
        blocks, self._rest = cut_blocks(stream, self.block_size)
        self.n_labels += int((blocks[1:] != IGNORED).sum())
        self.write(block_batch(blocks))
