"""Check a model's files without loading it: is the vocabulary there, is the weights file complete?

A GPT-2 without its vocabulary files still loads, with a vocabulary of one token, and then trains on nothing. Files of
another model, or a tokenizer that loses text, are noticed at loading: see `helpers.model`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.environment.access import Access
from helpers.environment.facts import ModelFiles, ModelFolder

GPT2 = "openai-community/gpt2"
_TRUE = {"1", "true", "yes", "on"}


def read_model_files(access: Access) -> ModelFiles:
    """Inspect the shipped pocket model, and GPT-2 if it is in the Hub's cache."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    snapshot = _snapshot(access)
    return ModelFiles(
        pocket=inspect(access.project / "helpers" / "assets" / "pocket"),
        gpt2=None if snapshot is None else inspect(snapshot),
        offline=tuple(name for name in switches if access.env.get(name, "").lower() in _TRUE),
    )


def _snapshot(access: Access) -> Path | None:
    cache = access.hub_cache()
    folder = cache / f"models--{GPT2.replace('/', '--')}" if cache else None
    if folder is None or not (folder / "refs" / "main").is_file():
        return None
    snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    return snapshot if (snapshot / "config.json").exists() else None


def inspect(folder: Path) -> ModelFolder:
    """Check a model's folder: are its files complete, and does the tokenizer have as many tokens as the model?"""
    if not folder.is_dir():
        return ModelFolder(str(folder), ("the folder is missing",))
    problems: list[str] = []
    config = _json(folder / "config.json", problems)
    n_tokens = len(_vocabulary(folder, problems))
    if not problems and n_tokens != config.get("vocab_size"):
        problems.append(f"the tokenizer has {n_tokens} tokens, not {config.get('vocab_size')}")
    size = _weights(folder / "model.safetensors", problems)
    return ModelFolder(str(folder), tuple(problems), n_tokens, config.get("n_positions", 0), size)


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        problems.append(f"{path.name} is not what it should be")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__})")
    return {}


def _vocabulary(folder: Path, problems: list[str]) -> dict[str, int]:
    """Return token -> id from tokenizer.json, added tokens included, or else from vocab.json."""
    if not (folder / "tokenizer.json").exists() and (folder / "vocab.json").exists():
        if not (folder / "merges.txt").exists():
            problems.append("merges.txt is missing")
        return _json(folder / "vocab.json", problems)
    content = _json(folder / "tokenizer.json", problems)
    try:
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        return dict(content["model"]["vocab"]) | added if content else {}
    except (KeyError, TypeError, ValueError):
        problems.append("tokenizer.json is not what it should be")
        return {}


def _weights(path: Path, problems: list[str]) -> int:
    """Return the size of the weights file in bytes, and note a file that is shorter than its header says."""
    try:
        from safetensors import safe_open

        with safe_open(path, framework="numpy"):
            return path.stat().st_size
    except ImportError:  # nothing is installed yet
        return path.stat().st_size if path.exists() else 0
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except Exception as error:  # noqa: BLE001 (a damaged header can contain anything)
        problems.append(f"{path.name} is incomplete or damaged ({error})")
    return 0
