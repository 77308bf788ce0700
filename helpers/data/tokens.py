"""Tokenise text fast, with the same ids as the model's tokenizer, and end every document with end-of-text.

tiktoken runs a byte-level BPE such as GPT-2's several times as fast as `tokenizers`, on several threads. Its ids are
compared with the tokenizer's own on the first texts; if they differ, or for another kind of tokenizer, the tokenizer
itself is used.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helpers.data.sources.chat import Dialogue

_THREADS = min(8, os.cpu_count() or 1)
_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2**20, 4096


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield batches of documents to encode together: about a million characters, at most 4,096 documents."""
    batch, n_characters = [], 0
    for text in texts:
        batch.append(text)
        n_characters += len(text)
        if n_characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


class TokenStream:
    """Turns documents into one stream of token ids.

    Attributes:
        is_fast: whether tiktoken does the work; None until something is encoded.
        eos: the id of the tokenizer's end-of-text token.
        dtype: of the ids; 2 bytes if the vocabulary allows it, because all ids are stored on disk.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer, self.is_fast = tokenizer, None
        self.eos = tokenizer.eos_token_id
        self.dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32

    def encode(self, texts: Sequence[str], *, with_ends: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the concatenated ids of documents or passages (tokens,), and the number in each (documents,).

        With ends, an end-of-text token follows each document and is counted.
        """
        if not texts:
            return np.empty(0, self.dtype), np.empty(0, np.int64)
        ids, n_tokens = self._encode_documents(texts)
        return (ids, n_tokens) if with_ends else (np.delete(ids, n_tokens.cumsum() - 1), n_tokens - 1)

    def encode_dialogues(self, dialogues: "Sequence[Dialogue]") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and token counts as `encode` does, and whether each token belongs to a prompt; (tokens,) bool.

        An end-of-text token also follows each completion, as part of it, so the model learns where an answer ends.
        """
        segments = [segment for dialogue in dialogues for segment in dialogue.segments]
        n_segments = np.array([len(dialogue.segments) for dialogue in dialogues])
        ids, n_tokens = self.encode([text for text, _ in segments], with_ends=False)
        is_prompt = np.array([is_prompt for _, is_prompt in segments])
        has_end = ~is_prompt
        has_end[n_segments.cumsum() - 1] = True
        owners, ends = np.repeat(np.arange(len(dialogues)), n_segments), n_tokens.cumsum()[has_end]
        n_by_dialogue = np.bincount(owners, n_tokens + has_end, len(dialogues)).astype(np.int64)
        is_prompt_token = np.insert(np.repeat(is_prompt, n_tokens), ends, is_prompt[has_end])
        return np.insert(ids, ends, self.eos), n_by_dialogue, is_prompt_token

    def _encode_documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.is_fast is None:
            self.is_fast = self._encoding is not None and self._is_fast_exact(texts)
        if self.is_fast:
            ids = self._encode_fast(texts)
            ends = np.flatnonzero(ids == self.eos)
            if len(ends) == len(texts):  # otherwise a document itself contains the end-of-text token
                return ids.astype(self.dtype), np.diff(ends, prepend=-1)
        return self._encode_slowly(texts)

    def _is_fast_exact(self, texts: Sequence[str]) -> bool:
        # A sample is enough to notice a different rule or vocabulary, and takes milliseconds.
        sample = [text[:2000] for text in texts[:20]]
        return np.array_equal(self._encode_fast(sample), self._encode_slowly(sample)[0])

    def _encode_fast(self, texts: Sequence[str]) -> np.ndarray:
        """Encode a share of the documents in each thread, which is faster because tiktoken releases the GIL.

        The documents of a share are joined with the end-of-text token: no token spans it, so the ids are the same as
        for each document alone.
        """
        end, size = self._tokenizer.eos_token, -(-len(texts) // _THREADS)
        shares = (end.join(texts[start : start + size]) + end for start in range(0, len(texts), size))
        return np.concatenate([*self._threads.map(self._encode_joined, shares)])

    def _encode_joined(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special="all", disallowed_special=())

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="tokens")

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # verbose=False: no warning about documents longer than the context; they will be cut into blocks.
        encoded = self._tokenizer(list(texts), verbose=False)["input_ids"]
        rows = [np.array([*ids, self.eos], self.dtype) for ids in encoded]
        return np.concatenate(rows), np.array([len(row) for row in rows])

    @cached_property
    def _encoding(self) -> Any:
        """The tokenizer as a tiktoken Encoding; None if it is not a byte-level BPE that splits text as GPT-2 does."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        parts = json.loads(backend.to_str()) if backend is not None else {}
        if not _has_ranks(parts):
            return None
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's

        special = {token["content"]: token["id"] for token in parts["added_tokens"]}
        ranks = {
            bytes(BYTES[character] for character in token): rank
            for token, rank in parts["model"]["vocab"].items()
            if token not in special
        }
        return tiktoken.Encoding("own", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def is_gpt2_like(parts: dict[str, Any]) -> bool:
    """Return whether a tokenizer's JSON describes a byte-level BPE that splits text into words as GPT-2 does."""
    rule, model = parts.get("pre_tokenizer") or {}, parts.get("model", {})
    if model.get("type") != "BPE" or parts.get("normalizer") or any(model.get(n) for n in ("dropout", "byte_fallback")):
        return False
    return rule.get("type") == "ByteLevel" and not rule.get("add_prefix_space") and rule.get("use_regex", True)


def _has_ranks(parts: dict[str, Any]) -> bool:
    """Return whether a tokenizer is like GPT-2's and its token ids follow the order of its merges.

    tiktoken has no list of merges: it uses a token's id as its rank, so the two orders must agree.
    """
    if not is_gpt2_like(parts):
        return False
    model = parts["model"]
    special = [token for token in parts["added_tokens"] if token["special"]]
    # tiktoken's special tokens never absorb the white space around them.
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in parts["added_tokens"]):
        return False
    # The vocabulary must be the 256 bytes, one token per merge, and the special tokens.
    merged = [model["vocab"].get("".join(pair)) for pair in model["merges"]]
    is_ordered = all(rank is not None for rank in merged) and merged == sorted(merged)
    is_complete = len(model["vocab"]) - len(merged) - len({t["content"] for t in special} & set(model["vocab"])) == 256
    is_bytes = all(character in BYTES for pair in model["merges"] for part in pair for character in part)
    return is_ordered and is_complete and is_bytes


def _gpt2_alphabet() -> dict[str, int]:
    """Return the byte that each of GPT-2's 256 printable characters stands for (OpenAI's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _gpt2_alphabet()
