"""How many tokens a training text has, before it is read: counted, published or estimated."""

import math
from typing import NamedTuple

from helpers.data.sources import Source
from helpers.files import read_json
from helpers.settings import DataSettings, SettingsError, run_folder

_BYTES_PER_TOKEN = {"pocket": 2.7}
_GPT2_BYTES_PER_TOKEN = 4.3
_UNKNOWN_TOKENS = 1_000_000
_HUB_TOKENS = {  # tokens of GPT-2's tokenizer in the training and in the validation part
    ("Salesforce/wikitext", "wikitext-2-raw-v1"): (2_400_000, 250_000),
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): (118_000_000, 250_000),
}


class TokenCounts(NamedTuple):
    """Tokens in the training and in the validation part of a text, and where these numbers come from."""

    train: int
    validation: int
    source: str


def count_tokens(settings: DataSettings) -> TokenCounts:
    """Return how many tokens a run trains on in an epoch, and how many a validation reads.

    The numbers are exact if the run's data are already prepared (blocks in which nothing is learned are not counted).
    Otherwise they are published (WikiText) or estimated from the file sizes, and limited by `max_tokens`. If nothing
    is known there are a million tokens to train on, so that a training time can be shown.
    """
    validation_share, train_share = settings.validation_share, 1 - settings.validation_share - settings.test_share
    if settings.streaming and settings.max_tokens:
        from helpers.data.preparation import sample_settings

        held_out = round(sample_settings(settings).max_tokens * validation_share)
        return TokenCounts(settings.max_tokens, held_out, "as max_tokens says")
    if counted := _counted_tokens(settings):
        return counted
    if published := None if settings.source_split else _HUB_TOKENS.get((settings.source, settings.source_config)):
        scale = _GPT2_BYTES_PER_TOKEN / _bytes_per_token(settings)
        counts = TokenCounts(*(round(scale * n_tokens) for n_tokens in published), "about, as published")
    else:
        counts = _tokens_by_size(settings)
    token_limit, held_out = (round(settings.max_tokens * share) for share in (train_share, validation_share))
    if token_limit and (not counts.train or counts.train > token_limit):
        return TokenCounts(token_limit, min(counts.validation or held_out, held_out), "as max_tokens leaves")
    if not counts.train:
        held_out = round(_UNKNOWN_TOKENS * validation_share / train_share)
        return TokenCounts(_UNKNOWN_TOKENS, held_out, "not prepared yet: values for a million")
    return counts


def _tokens_by_size(settings: DataSettings) -> TokenCounts:
    """Estimate the tokens of a source as if it had no split of its own; 0 if it is not on disk."""
    try:
        n_tokens = Source(settings).estimate_bytes() / _bytes_per_token(settings)
    except (SettingsError, OSError):  # `prepare` reports what is wrong
        n_tokens = 0
    counts = (n_tokens * (1 - settings.validation_share - settings.test_share), n_tokens * settings.validation_share)
    return TokenCounts(*map(int, counts), "about, from the size of the text if it is English")


def _bytes_per_token(settings: DataSettings) -> float:
    """Return the approximate bytes per token for English text; other languages and code have shorter tokens.

    For trained tokenizers these were measured on the two shipped texts (0.4 and 0.5 MB): 2.2 at 512 tokens, 2.9 at
    1,024, 4.0 at 4,096, 4.3 at 8,192.
    """
    if settings.tokenizer == "train":
        return min(_GPT2_BYTES_PER_TOKEN, 2.2 + 0.6 * math.log2(settings.vocab_size / 512))
    return _BYTES_PER_TOKEN.get(settings.model_name_or_path, _GPT2_BYTES_PER_TOKEN)


def _counted_tokens(settings: DataSettings) -> TokenCounts | None:
    """Return the counts in the run's data.json if they are for the same text and tokenizer; otherwise None."""
    compared = DataSettings.model_fields.keys() - {"run", "block_size"}
    try:
        facts = read_json(run_folder(settings.run) / "data" / "data.json")
        is_same = all(facts["settings"][name] == getattr(settings, name) for name in compared)
        if not is_same:
            return None
        block_size, parts = facts["settings"]["block_size"], [facts["splits"][name] for name in ("train", "validation")]
        if "labels" not in parts[0]:
            return TokenCounts(*(int(part["tokens"]) for part in parts), "counted")
        is_exact = block_size == settings.block_size
        source = "counted" if is_exact else f"about, from blocks of {block_size}"
        return TokenCounts(*(int(part["blocks"] * block_size) for part in parts), source)
    except (OSError, ValueError, KeyError, TypeError):
        return None
