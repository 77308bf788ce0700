"""Text to tokens, fast: the ids of the model's own tokenizer, each document closed by its end-of-text token.

A byte-level BPE such as GPT-2's is run by tiktoken: the same ids, several times as fast, and on several threads.
That they are the same is checked on the first text; another tokenizer, or another answer, goes through `tokenizers`.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THREADS = min(8, os.cpu_count() or 1)


class TokenStream:
    """Turns documents into ids.

    Args:
        tokenizer: one with an end-of-text token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer, self._fast, self._is_checked = tokenizer, True, False
        self.eos = tokenizer.eos_token_id
        self.dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32

    @property
    def is_fast(self) -> bool:
        """Whether tiktoken does the work; it is known when something was encoded."""
        return self._fast and self._encoding is not None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all documents in one array, an end-of-text after each, and the tokens of each document."""
        if not texts:
            return np.empty(0, self.dtype), np.empty(0, np.int64)
        ids = self._encode_fast(texts) if self.is_fast else None
        if ids is None:
            return self._encode_slowly(texts)
        ends = np.flatnonzero(ids == self.eos)
        if len(ends) != len(texts):  # a document holds the end-of-text token itself
            return self._encode_slowly(texts)
        return ids.astype(self.dtype), np.diff(ends, prepend=-1)

    def _encode_fast(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return the ids of the documents joined by the end-of-text token, which no piece of text reaches across."""
        end = self._tokenizer.eos_token
        if not self._is_checked:
            self._is_checked, sample = True, [text[:2000] for text in texts[:20]]
            own, _ = self._encode_slowly(sample)
            self._fast = np.array_equal(self._join_and_encode(sample, end), own)
        return self._join_and_encode(texts, end) if self._fast else None

    def _join_and_encode(self, texts: Sequence[str], end: str) -> np.ndarray:
        """Encode a share of the documents in each thread: tiktoken works without Python's lock."""
        size = -(-len(texts) // _THREADS)
        shares = (texts[start : start + size] for start in range(0, len(texts), size))
        return np.concatenate([*self._threads.map(lambda share: self._encode_joined(end.join(share) + end), shares)])

    def _encode_joined(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, allowed_special="all", disallowed_special=())

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="tokens")

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [
            np.array([*ids, self.eos], self.dtype) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]
        ]
        return np.concatenate(rows), np.array([len(row) for row in rows])

    @cached_property
    def _encoding(self) -> Any:
        """The tokenizer as tiktoken's, or None where it is no byte-level BPE with GPT-2's rule."""
        import json

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        parts = json.loads(backend.to_str()) if backend is not None else {}
        if not _is_gpt2_like(parts):
            return None
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's

        special = {token["content"]: token["id"] for token in parts["added_tokens"]}
        ranks = {
            bytes(BYTES[sign] for sign in token): rank
            for token, rank in parts["model"]["vocab"].items()
            if token not in special
        }
        return tiktoken.Encoding("own", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _is_gpt2_like(parts: dict[str, Any]) -> bool:
    """Tell whether a tokenizer is a byte-level BPE whose merges are numbered in the order in which they are made."""
    rule, model = parts.get("pre_tokenizer") or {}, parts.get("model", {})
    if model.get("type") != "BPE" or parts.get("normalizer") or any(model.get(n) for n in ("dropout", "byte_fallback")):
        return False
    if rule.get("type") != "ByteLevel" or rule.get("add_prefix_space") or not rule.get("use_regex", True):
        return False
    special = [token for token in parts["added_tokens"] if token["special"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in parts["added_tokens"]):
        return False
    merged = [model["vocab"].get("".join(pair)) for pair in model["merges"]]
    is_ordered = all(rank is not None for rank in merged) and merged == sorted(merged)
    is_whole = len(model["vocab"]) - len(merged) - len({t["content"] for t in special} & set(model["vocab"])) == 256
    is_bytes = all(sign in BYTES for pair in model["merges"] for part in pair for sign in part)
    return is_ordered and is_whole and is_bytes


def _byte_of_sign() -> dict[str, int]:
    """Return GPT-2's alphabet: which byte each of its 256 printable signs stands for (OpenAI's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_of_sign()
