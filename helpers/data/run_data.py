"""The data in a run's folder: open them, and compare them with the settings."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from helpers.data.sources import check_source, source_hash
from helpers.data.sources.chat import TEMPLATES
from helpers.display import MIB, first_line
from helpers.files import read_json
from helpers.model import check_model_name, load_tokenizer, model_hash
from helpers.paths import is_same_place
from helpers.settings import DataSettings, SettingsError, run_folder

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

_READ_BYTES = 64 * MIB  # total size of all files: about 30 MB of text


@dataclass(frozen=True)
class PreparedData:
    """The data that a run is trained and evaluated on.

    Attributes:
        blocks: `train` and `validation`; each row has `input_ids` of exactly `block_size` tokens.
        documents: `train`, `validation` and `test`; each row has one document's `text` and its `n_tokens`.
        facts: counts, bytes and hashes, as in `data.json`.

    With `streaming`, all of these cover only the text's first tokens; training reads `open_training_blocks` instead.
    """

    blocks: "DatasetDict"
    documents: "DatasetDict"
    facts: dict[str, Any]


def open_prepared(run: str) -> PreparedData:
    """Open the data that `prepare` wrote for a run: small data are loaded into memory, large data memory-mapped.

    Windows cannot replace a mapped file: a notebook could no longer prepare its own text with other settings.

    Raises:
        SettingsError: there are no data, or they are damaged.
    """
    from datasets import load_from_disk

    folder = run_folder(run) / "data"
    if not (folder / "data.json").exists():
        raise SettingsError(f"Run {run!r} holds no data yet: run notebook 2 or `prepare(settings)` first.")
    facts = read_json(folder / "data.json")
    is_small = sum(path.stat().st_size for path in folder.rglob("*.arrow")) <= _READ_BYTES
    try:
        parts = (load_from_disk(folder / name, keep_in_memory=is_small) for name in ("blocks", "documents"))
        return PreparedData(*parts, facts)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are among these
        raise SettingsError(
            f"The data of run {run!r} are damaged ({first_line(error)}): delete the folder {folder}, and run notebook "
            "2 for this run; the same text and settings give the same data."
        ) from None


def load_run_tokenizer(settings: DataSettings) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a prepared run: the one trained on its text, or its model's.

    If the text is chat data, the tokenizer has their template, so `apply_chat_template` writes what the model learned.
    """
    DataSettings.check_type(settings)
    folder = run_folder(settings.run) / "data"
    own = settings.tokenizer == "train"
    tokenizer = load_tokenizer(str(folder / "tokenizer") if own else settings.model_name_or_path)
    path = folder / "data.json"
    documents = read_json(path).get("documents", {}) if path.exists() else {}
    if documents.get("is_chat"):  # data of an earlier version do not say
        ends_answers = documents.get("train_on", settings.train_on) == "completion"
        tokenizer.chat_template = TEMPLATES[settings.chat_template]._replace(ends_answers=ends_answers).jinja
    return tokenizer


def refuse_missing(values: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for a missing text or model, before anything starts; does not contact the Hub.

    Args:
        values: settings of a run; only `source`, `general_source` and `model_name_or_path` are checked. A run whose
            data are prepared no longer needs its source.
    """
    if "model_name_or_path" in values:
        check_model_name(values["model_name_or_path"])
    if "general_source" in values:
        with name_general_source(values["general_source"]):
            check_source(values["general_source"])
    if "source" in values:
        try:
            check_source(values["source"])
        except SettingsError:
            known = DataSettings.model_fields.keys() & values.keys()
            if not is_same_text(DataSettings(**{name: values[name] for name in known})):
                raise


@contextmanager
def name_general_source(general_source: str) -> Iterator[None]:
    """Name `general_source` in this block's errors, which call every text `source`."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"general_source = {general_source!r} cannot be read. {error}") from None


def is_same_text(settings: DataSettings) -> bool:
    """Return whether a run already has the data for these settings, even if its source has moved.

    A file that was moved or renamed, or whose path is written differently, still counts as the same while its bytes
    are. A deleted source is fine too: the run has its text.
    """
    path = run_folder(settings.run) / "data" / "data.json"
    if not path.exists():
        return False
    facts = read_json(path)
    before, now = DataSettings(**facts["settings"]), settings.part(DataSettings)
    ignored = {"run": now.run, "source": now.source}
    if is_same_model(now.run, before.model_name_or_path, now.model_name_or_path):
        ignored["model_name_or_path"] = now.model_name_or_path
    if before.model_copy(update=ignored) != now:
        return False
    is_same_name = before.source == now.source
    try:
        # A single file's hash includes its name, so hash it under the name it had.
        name = PurePath(before.source.replace("\\", "/")).name
        sha256 = source_hash(now.source, name=name, streaming="stream" in facts)
    except SettingsError:
        if is_same_name:
            return True
        raise
    return sha256 == facts["source_sha256"] and (is_same_name or sha256 is not None)


def is_same_model(run: str, before: str, now: str) -> bool:
    """Return whether a run's model and the model named `now` are the same, by path or by the hash of their files."""
    if is_same_place(before, now):
        return True
    path = run_folder(run) / "data" / "data.json"
    facts = read_json(path) if path.exists() else {}
    return facts.get("model_sha256") is not None and facts["model_sha256"] == model_hash(now)
