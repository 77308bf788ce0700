"""The models' files, looked at without loading a model: is the vocabulary there, is the file of weights whole?

A GPT-2 without its vocabulary files still loads, with a vocabulary of one token, and then trains on nothing.
"""

import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.environment.facts import ModelFiles, ModelFolder

if TYPE_CHECKING:
    from helpers.environment.sources import Sources

GPT2 = "openai-community/gpt2"
GPT2_SIZES = {"tokens": 50257, "eos": 50256, "positions": 1024}
_PROBE = "A fox, 3 geese\nand a well."
_TRUE = {"1", "true", "yes", "on"}


def read_model_files(sources: "Sources") -> ModelFiles:
    """Inspect the shipped pocket model, and GPT-2 where the Hub's cache has it."""
    offline = any(sources.env.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    snapshot = _snapshot(sources)
    return ModelFiles(
        pocket=inspect(sources.project / "helpers" / "assets" / "pocket", {}),
        gpt2=None if snapshot is None else inspect(snapshot, GPT2_SIZES),
        offline=offline,
    )


def hub_cache(sources: "Sources") -> "Path | None":
    """Return the folder of the Hub's cache, or None where there is no home for it."""
    env, home = sources.env, sources.home()
    if env.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(env["HF_HUB_CACHE"]))  # noqa: PTH111 (without a home it stays as it is)
    if env.get("HF_HOME"):
        return Path(os.path.expanduser(env["HF_HOME"])) / "hub"  # noqa: PTH111
    base = env.get("XDG_CACHE_HOME") or (home / ".cache" if home else None)
    return Path(base) / "huggingface" / "hub" if base else None


def _snapshot(sources: "Sources") -> "Path | None":
    cache = hub_cache(sources)
    folder = cache / f"models--{GPT2.replace('/', '--')}" if cache else None
    if folder is None or not (folder / "refs" / "main").is_file():
        return None
    snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    return snapshot if (snapshot / "config.json").exists() else None


def inspect(folder: Path, sizes: "Mapping[str, int]") -> ModelFolder:
    """Look at a model's folder; `sizes` are those it must have, left out: those its configuration names."""
    if not folder.is_dir():
        return ModelFolder(str(folder), ("the folder is missing",))
    problems: list[str] = []
    config = _json(folder / "config.json", problems)
    vocabulary = _vocabulary(folder, problems)
    wanted = {
        "tokens": config.get("vocab_size", 0),
        "eos": config.get("eos_token_id", -1),
        "positions": config.get("n_positions", 0),
    } | dict(sizes)
    if not vocabulary and not problems:
        problems.append("the tokenizer has no tokens")
    if vocabulary and len(vocabulary) != wanted["tokens"]:
        problems.append(f"the tokenizer has {len(vocabulary)} tokens, not {wanted['tokens']}")
    if vocabulary and vocabulary.get("<|endoftext|>") != wanted["eos"]:
        problems.append(f"<|endoftext|> is token {vocabulary.get('<|endoftext|>')}, not {wanted['eos']}")
    if config and config.get("n_positions", 0) != wanted["positions"]:
        problems.append(f"the model has {config.get('n_positions')} positions, not {wanted['positions']}")
    rows, size = _weights(folder / "model.safetensors", problems)
    if rows is not None and rows < len(vocabulary):
        problems.append(f"the model has {rows} rows for {len(vocabulary)} tokens")
    if vocabulary and not problems:
        problems += _round_trip(folder)
    return ModelFolder(str(folder), tuple(problems), len(vocabulary), config.get("n_positions", 0), size)


def _json(path: Path, problems: "list[str]") -> "dict[str, Any]":
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        problems.append(f"{path.name} is not what it should be")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
    return {}


def _vocabulary(folder: Path, problems: "list[str]") -> "dict[str, int]":
    """Return token -> id from tokenizer.json, with the tokens that were added to it, or from vocab.json."""
    if not (folder / "tokenizer.json").exists() and (folder / "vocab.json").exists():
        if not (folder / "merges.txt").exists():
            problems.append("merges.txt is missing")
        return _json(folder / "vocab.json", problems)
    told = _json(folder / "tokenizer.json", problems)
    try:
        added = {token["content"]: token["id"] for token in told.get("added_tokens") or []}
        return dict(told["model"]["vocab"]) | added if told else {}
    except (KeyError, TypeError, ValueError):
        problems.append("tokenizer.json is not what it should be")
        return {}


def _weights(path: Path, problems: "list[str]") -> "tuple[int | None, int]":
    """Return the embedding's rows and the file's bytes; the header says where the last weight ends."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(length, 10_000_000)))
        tensors = {name: told for name, told in header.items() if name != "__metadata__"}
        end = 8 + length + max((told["data_offsets"][1] for told in tensors.values()), default=0)
        rows = [told["shape"][0] for name, told in tensors.items() if re.search(r"(^|\.)wte\.weight$", name)]
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return None, 0
    except Exception as error:  # noqa: BLE001 (a spoilt header can say anything)
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
        return None, 0
    if size < end:
        problems.append(f"{path.name} is cut short ({size:,} of {end:,} bytes)")
    if not rows:
        problems.append(f"{path.name} holds no embedding of tokens")
    return (rows[0] if rows else None), size


def _round_trip(folder: Path) -> "list[str]":
    """Encode and decode one line where the tokenizers library is there; it is small and imports no torch."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return []
    if not (folder / "tokenizer.json").exists():
        return []
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        back = tokenizer.decode(tokenizer.encode(_PROBE).ids)
    except Exception as error:  # noqa: BLE001 (what the library raises has no class of its own)
        return [f"tokenizer.json cannot be loaded ({str(error)[:100]})"]
    return [] if back == _PROBE else [f"the tokenizer gives back {back!r} for {_PROBE!r}"]
