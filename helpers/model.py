"""Tokenizer and model: the shipped pocket model, a folder, the Hub, or a new one, all through the same code.

The loaders rule out what would break training silently: an empty vocabulary, a missing end-of-text token, missing
weights, and weights in less than float32.
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.display import did_you_mean, first_line, last_part
from helpers.paths import POCKET, find_path, paths_of, similar_paths
from helpers.settings import SettingsError, TrainingSettings

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

_END_OF_TEXT = "<|endoftext|>"
_LEGACY_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # the Hub still knows these names
# Far above any GPT-2. Building 3,000 layers takes two minutes, which would pass before their weights are missed.
_LARGEST = {"n_layer": 200, "n_embd": 20_000, "n_head": 1000, "vocab_size": 2_000_000, "n_positions": 1_000_000}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Model that `on_device` moved to the GPU -> number of blocks that use it: a panel generates text in its own thread.
_visits: Counter["GPT2LMHeadModel"] = Counter()
_loading = threading.Lock()  # transformers patches its classes while it loads: two threads would break them for good
_visits_lock = threading.RLock()  # reentrant: garbage collection may close a generator, and so end a block, here
# Blocks of `quiet` overlap when a panel trains in a thread: the first one hides, the last one restores.
_n_quiet = 0
_restore = ExitStack()
_quiet_lock = threading.Lock()


def check_model_name(name: str) -> Path | None:
    """Return the folder that a model's name refers to; None for a model on the Hub.

    Raises:
        SettingsError: a path without a model, or a Hub name without its owner.
    """
    if name == "pocket":
        return POCKET
    folder = find_path(name)
    if folder is not None:
        if (folder / "config.json").is_file():
            return folder
        what = "a LoRA adapter, not a model" if (folder / "adapter_config.json").is_file() else "not a model's folder"
        raise SettingsError(
            f"model_name_or_path = {name!r}: {folder} is {what}: it has no config.json. In a run's folder "
            "the complete model is in `model`."
        )
    if _HUB_ID.fullmatch(name) or name in _LEGACY_HUB_NAMES:
        return None
    raise SettingsError(
        f"model_name_or_path = {name!r} is not there: looked for {' and '.join(map(str, paths_of(name)))}. Name a "
        "folder, 'pocket', which is shipped, or a model of the Hub with its owner, as in 'openai-community/gpt2'"
        f"{did_you_mean(name, similar_paths(name, ('pocket', *_LEGACY_HUB_NAMES)))}"
    )


def model_hash(name: str) -> str | None:
    """Return the SHA-256 of the files in a model's folder except its card; None for 'pocket' and for Hub models."""
    folder = check_model_name(name)
    if folder in (None, POCKET):
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir(), key=lambda file: file.name):  # by name: Windows compares paths without case
        if file.is_file() and file.name != "README.md":
            with file.open("rb") as opened:
                digest.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_tokenizer(model_name_or_path: str) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer and check that it works.

    Raises:
        SettingsError: it cannot be found, has an empty vocabulary, no end-of-text token, or loses text.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, model_name_or_path)
    probe = "A fox, 3 geese\nand a well."
    with _explain_errors(model_name_or_path):  # tokenizer_config.json can name a class that is not a tokenizer for text
        is_broken = tokenizer.eos_token_id is None or tokenizer.decode(tokenizer.encode(probe)) != probe
    if is_broken:
        raise SettingsError(
            f"The tokenizer of {model_name_or_path!r} is broken: it has {len(tokenizer)} tokens and does not return "
            "the text it was given. Its vocabulary files are missing or empty: name a complete folder (of a run, its "
            "`model`), or download the model again."
        )
    return tokenizer


def load_model(
    model_name_or_path: str, *, from_scratch: bool = False, seed: int = 42, **new_values: Any
) -> "GPT2LMHeadModel":
    """Load a GPT-2 in evaluation mode and in float32, whatever number format its file has.

    Args:
        model_name_or_path: 'pocket', a folder, or a Hub id.
        from_scratch: use only the configuration and draw random weights.
        seed: for the random weights.
        new_values: values of `GPT2Config` that replace those of the configuration; used only from scratch.

    Raises:
        SettingsError: it cannot be found, is not a GPT-2 or is incomplete, or the shape is impossible.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig, GPT2LMHeadModel

    config = _load(AutoConfig, model_name_or_path)
    if config.model_type != "gpt2":
        raise SettingsError(f"{model_name_or_path!r} is a {config.model_type} model: this course trains GPT-2 models.")
    if from_scratch:
        config.update({"dtype": torch.float32} | new_values)
    check_shape(config)
    if from_scratch:
        with _explain_errors(model_name_or_path), torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config).eval()  # as from `from_pretrained`: without dropout
    else:
        # safetensors only, because a pickle can run code
        options = {"dtype": torch.float32, "output_loading_info": True, "use_safetensors": True}
        model, report = _load(GPT2LMHeadModel, model_name_or_path, **options)
        if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random and go on
            raise SettingsError(
                f"The model {model_name_or_path!r} is incomplete: {len(missing)} of its weights are missing, such as "
                f"{missing[0]}. Its files are cut short or belong to another model; train or download it again."
            )
        if hasattr(model, "peft_config"):  # transformers loads it too: the model could be neither trained nor saved
            raise SettingsError(
                f"The model {model_name_or_path!r} has a LoRA adapter (adapter_config.json) beside its weights: remove "
                "the files of the adapter, or merge it into the weights with peft's `merge_and_unload`."
            )
    # Drop the published generation settings, such as beam search: they would apply wherever ours set nothing.
    model.generation_config = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id)
    model.loss_type = "ForCausalLM"  # without it transformers guesses it from the class name, and warns
    return model


def load_start(settings: TrainingSettings, tokenizer: "PreTrainedTokenizerBase") -> "GPT2LMHeadModel":
    """Load the model that a run starts from: the pretrained one, or a new one with a vocabulary for this tokenizer.

    Raises:
        SettingsError: as `load_model` does.
    """
    TrainingSettings.check_type(settings)
    if not settings.from_scratch:
        return load_model(settings.model_name_or_path)
    values = settings.new_shape | {"resid_pdrop": settings.resid_pdrop, "embd_pdrop": settings.resid_pdrop}
    if settings.tokenizer == "train":
        end = tokenizer.eos_token_id
        values |= {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
    return load_model(settings.model_name_or_path, from_scratch=True, seed=settings.seed, **values)


def check_shape(shape: Any) -> None:
    """Raise `SettingsError` for an impossible shape, such as a width (`n_embd`) that the heads do not divide."""
    for name, largest in _LARGEST.items():
        if not 1 <= (value := getattr(shape, name)) <= largest:
            raise SettingsError(f"{name} = {value} in the model's config.json: it must be 1 to {largest}.")
    if shape.n_embd % shape.n_head:
        raise SettingsError(
            f"n_embd = {shape.n_embd} cannot be split into n_head = {shape.n_head} heads: "
            f"use a multiple of {shape.n_head}."
        )


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE with GPT-2's layout: bytes first, then merges, the end-of-text token last.

    Args:
        texts: the training text, read once. Leave out the text that you want to measure on.
        vocab_size: maximum number of tokens, at least 257: the bytes, merges found in the texts, and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        # sorted, because the alphabet comes in random order: the ids would differ from run to run
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocab = {**trained["vocab"], _END_OF_TEXT: len(trained["vocab"])}
    merges = [tuple(pair) for pair in trained["merges"]]
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def check_sound(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", *, block_size: int = 1) -> None:
    """Raise `SettingsError` if a model cannot be trained, measured or sampled in a meaningful way.

    That is the case if the tokenizer belongs to another model, a block is longer than the model's positions, or
    weights are not finite or are in less than float32.
    """
    if len(tokenizer) > model.config.vocab_size:
        raise SettingsError(
            f"The tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size} embeddings for them: "
            "take both from the same model."
        )
    eos_token_id = model.config.eos_token_id
    if isinstance(eos_token_id, int) and eos_token_id != tokenizer.eos_token_id:
        raise SettingsError(
            f"The model ends a text with token {eos_token_id} and the tokenizer with {tokenizer.eos_token_id}: they "
            "have different vocabularies; take both from the same model."
        )
    if block_size > model.config.n_positions:
        raise SettingsError(
            f"block_size = {block_size} is longer than the {model.config.n_positions} positions of the model: "
            f"use at most {model.config.n_positions}."
        )

    for name, weights in model.named_parameters():
        if not weights.detach().float().sum().isfinite():
            raise SettingsError(
                f"The model is broken: its weights {name} hold values that are not finite numbers. "
                "Train again with a lower learning_rate, or load an earlier checkpoint."
            )
        if weights.element_size() < 4:
            raise SettingsError(
                f"The model's weights are {weights.dtype}, not precise enough to measure with: load it with "
                "helpers.model.load_model, which gives float32."
            )


def describe_prompt(prompt: str) -> str:
    """Return a warning for a prompt that ends in a space, which makes the next word improbable; '' for any other.

    GPT-2's tokens for words begin with the space: after a separate space, only rare tokens can follow.
    """
    if not prompt.endswith(" "):
        return ""
    return f"The prompt {prompt!r} ends in a space, which belongs to the next word's token: leave it out."


def set_attention_dropout(model: "GPT2LMHeadModel", attn_pdrop: float) -> None:
    """Set the dropout of the attention weights of a loaded model; its saved configuration does not change."""
    for block in model.transformer.h:
        block.attn.attn_dropout.p = attn_pdrop


@contextmanager
def quiet(*, shows_downloads: bool = False) -> Iterator[None]:
    """Hide transformers' log messages and all progress bars for a block; `shows_downloads` keeps those of downloads."""
    import datasets
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    global _n_quiet
    with _quiet_lock:
        if not _n_quiet:
            _restore.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
            if not datasets.are_progress_bars_disabled():
                _restore.callback(datasets.enable_progress_bars)
                datasets.disable_progress_bars()
            if logging.is_progress_bar_enabled():
                _restore.callback(logging.enable_progress_bar)
                logging.disable_progress_bar()
                if shows_downloads:  # transformers hid these too
                    enable_progress_bars()
        _n_quiet += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _n_quiet -= 1
            if not _n_quiet:
                _restore.close()


def device() -> Any:
    """Return the device that models run on here: the GPU if there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on_device(model: "GPT2LMHeadModel") -> Iterator["GPT2LMHeadModel"]:
    """Move a model to the GPU for a block and back to main memory after it; a model already there stays there.

    Two models of GPT-2's largest sizes rarely fit on one card. Without a GPU nothing moves.
    """
    import torch

    target = device()
    with _visits_lock:
        is_visitor = _visits[model] > 0 or model.device.type != target.type
        _visits[model] += is_visitor
    try:
        if is_visitor:
            with _visits_lock:
                model.to(target)
        yield model
    finally:
        with _visits_lock:
            _visits[model] -= is_visitor
            if not _visits[model]:
                del _visits[model]
                if is_visitor:
                    model.to("cpu")
                    torch.cuda.empty_cache()  # other kernels use the card too


def hub_answers() -> bool:
    """Return whether the Hub can be reached, with one request of at most 5 s: the libraries would retry for minutes."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # noqa: BLE001 (whatever the client raises, the Hub did not answer)
        return False
    return True


def shown_name(model_name_or_path: str) -> str:
    """Return a model's name; for a folder only the last part, because a path can reveal personal data.

    >>> shown_name("openai-community/gpt2"), shown_name("/data/letters/model")
    ('openai-community/gpt2', 'model')
    """
    is_on_hub = _HUB_ID.fullmatch(model_name_or_path) and not Path(model_name_or_path).exists()
    return model_name_or_path if is_on_hub else last_part(model_name_or_path)


def _load(kind: Any, name: str, **options: Any) -> Any:
    """Call `kind.from_pretrained`; if that fails, raise an error that says what to do."""
    folder = _folder(name)
    path = folder or check_model_name(name) or name
    # Without trust_remote_code, transformers asks on a terminal whether to run code that comes with a model.
    options |= {"trust_remote_code": False, "local_files_only": bool(folder) or not hub_answers()}
    # a download takes minutes and needs a progress bar; reading the weights does not
    with _explain_errors(name), _loading, quiet(shows_downloads=not folder):
        return kind.from_pretrained(str(path), **options)


def _folder(name: str) -> Path | None:
    return POCKET if name == "pocket" else find_path(name)


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Turn an error that transformers raises while it loads a model or a tokenizer into one that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:  # truncated, or shapes that contradict the configuration
        # transformers' message refers to a report that it does not show
        reason = "shapes differ" if "mismatched_sizes" in str(error) else first_line(error)
        raise SettingsError(
            f"The model {name!r} is broken ({reason}): its weights file is cut short, "
            "or does not fit its config.json. Train or download it again."
        ) from None
    except Exception as error:  # noqa: BLE001 (a damaged config.json or a lost connection raises anything)
        folder = _folder(name)
        if unreadable := [file.name for file in (folder.iterdir() if folder else ()) if not os.access(file, os.R_OK)]:
            advice = f"you may not read its {', '.join(unreadable)}: ask the owner to change the permissions"
        elif "model.safetensors" in str(error):
            advice = "take one that has its weights in this file; a .bin file is a pickle, which can run code"
        elif "custom code" in str(error):
            advice = "this course runs no code of a model; take a GPT-2"
        elif folder:
            advice = f"a file in {folder} is damaged or missing. Copy, download or train the model again"
        else:
            advice = "check the name and the network, or use model_name_or_path='pocket', which is shipped"
        meant = did_you_mean(name, similar_paths(name))
        raise SettingsError(f"The model {name!r} could not be loaded ({first_line(error)}): {advice}{meant}") from None
