"""Every setting of the course, declared once, and the presets.

A setting's type, default, bounds, unit and help are in its field. Validation and its messages, papermill parameters,
the command line, sliders and the tables in notebooks are all generated from these fields. A setting that also exists in
`transformers.TrainingArguments`, `GPT2Config`, `GenerationConfig` or peft's `LoraConfig` has the same name here (but
`lora_r` is peft's `r`).
"""

import codecs
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError, model_validator

from helpers.display import did_you_mean, quoted
from helpers.files import read_json, refuse_long_paths
from helpers.paths import ASSETS, COMMAND, find_path, runs_folder, stored_path
from helpers.schema import Settings, SettingsError, refuse_truth_value, sentence, setting, unknown

PRESETS = ASSETS / "presets"
SHIPPED_TEXTS = ("fables", "python-reference")
PATH_SETTINGS = ("source", "general_source", "model_name_or_path")  # each may be the path of a file or folder

# settings that apply only to a new model
NEW_SHAPE = ("n_layer", "n_embd", "n_head", "n_positions")
NEW_MODEL = ("tokenizer", *NEW_SHAPE, "resid_pdrop")

_MIN_TEMPERATURE = 1e-6
# A setting -> the setting that it depends on, and whether it has an effect with a value of that one.
_DEPENDS_ON: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "vocab_size": ("tokenizer", lambda tokenizer: tokenizer == "train"),
    "source_config": ("source", lambda source: source not in SHIPPED_TEXTS),
    "source_revision": ("source", lambda source: source not in SHIPPED_TEXTS and find_path(source) is None),
    "text_column": ("source", lambda source: source not in SHIPPED_TEXTS),
    "chat_template": ("source", lambda source: source not in SHIPPED_TEXTS),
    "lora_alpha": ("lora_r", bool),
    "lora_dropout": ("lora_r", bool),
    "adam_beta2": ("optim", lambda optim: optim != "adafactor"),
    **dict.fromkeys((*NEW_SHAPE, "resid_pdrop"), ("from_scratch", bool)),
}
_SEPARATORS = ("auto", "row", "line", "blank line", "heading", "file")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def run_folder(run: str) -> Path:
    """Return the folder of one run; raise `SettingsError` for a name that is not a plain file name.

    >>> run_folder("../x")
    Traceback (most recent call last):
    helpers.schema.SettingsError: run = '../x' is not a plain name: use 1 to 64 letters from a to z, digits, '.', '_' \
or '-', starting with a letter or digit.
    """
    try:
        folder = runs_folder() / _plain_name(run)
    except ValueError as error:
        raise SettingsError(f"run = {quoted(run)} {error}.") from None
    refuse_long_paths(folder)
    return folder


def _plain_name(name: str) -> str:
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/trial-\d+", name):
        raise ValueError(f"is a trial of a study: `{COMMAND} compare {name} --promote NAME` turns it into a run")
    if not (isinstance(name, str) and _RUN_NAME.fullmatch(name)):
        raise ValueError(
            "is not a plain name: use 1 to 64 letters from a to z, digits, '.', '_' or '-', starting with a letter or "
            "digit"
        )
    if _WINDOWS_DEVICE.fullmatch(name) or name.endswith("."):
        raise ValueError("is a name Windows cannot use for a folder: choose another")
    return name


def _known_encoding(name: str) -> str:
    try:
        if name == "auto":
            return name
        "a".encode(name)  # raises for codecs that do not encode text, such as base64
        return codecs.lookup(name).name
    except (LookupError, ValueError):  # ValueError: a null character, or a codec that refuses every text
        raise ValueError(
            "is not an encoding that Python knows: use 'auto', 'utf-8', 'cp1252', 'utf-16' or another"
        ) from None


def _known_separator(separator: str) -> str:
    """Return the separator; refuse a broken pattern, and a misspelt value that would be used as literal text."""
    if separator.startswith("pattern:"):
        try:
            re.compile(separator.removeprefix("pattern:"))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"has a broken regular expression after 'pattern:' ({error})") from None
        if separator == "pattern:":
            raise ValueError("needs a regular expression after 'pattern:', as in 'pattern:^CHAPTER'")
    if separator in _SEPARATORS or re.fullmatch(r"[1-9]\d* rows?", separator) or "\n" in separator:
        return separator
    plain = " ".join(re.split(r"[\s_-]+", separator.strip().lower())).removesuffix("s")
    if plain in _SEPARATORS or re.fullmatch(r"\d* ?(row|line)", plain):
        raise ValueError(f"is not a value: use {', '.join(map(repr, _SEPARATORS))}, or a number as in '100 rows'")
    return separator


def _path_or_name(name: str) -> str:
    """Return the name as `stored_path` does; explain what goes wrong with Windows paths in quotes."""
    if _CONTROL_CHARACTER.search(name) and find_path(name) is None:
        raise ValueError(
            "does not exist, and contains a control character: in quotes, a backslash can begin one, as \\t means a "
            "tab. Write / instead of each \\"
        )
    if '"' in name and find_path(name) is None:  # copied from Explorer, or a final \" in a terminal
        raise ValueError("does not exist, and contains a quotation mark: remove it; do not end a quoted path with \\")
    return stored_path(name)


def _check_temperature(temperature: float) -> float:
    if temperature < _MIN_TEMPERATURE:  # a logit divided by it could overflow float32
        raise ValueError(f"is too small: use at least {_MIN_TEMPERATURE:g}, which draws the most probable token")
    return temperature


PathOrName = Annotated[str, AfterValidator(_path_or_name)]


class RunSettings(Settings):
    """The run and its seed."""

    run: Annotated[str, AfterValidator(_plain_name)] = setting("pocket", "name of the run's folder")
    seed: int = setting(42, "makes the split, the order and the samples reproducible", ge=0, le=2**31 - 1)

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:
        """Build the settings from a preset and changes to it; the preset's values for other settings are ignored."""
        values = {name: value for name, value in read_preset(preset).items() if name in cls.model_fields}
        return cls(**{**values, **changes})


class DataSettings(RunSettings):
    """The model whose tokenizer is used, the text, how it is split by document, and the block length."""

    model_name_or_path: PathOrName = setting(
        "pocket",
        "'pocket' (shipped), a folder, or a Hub id such as openai-community/gpt2",
        min_length=1,
        examples=["pocket", "openai-community/gpt2", "distilbert/distilgpt2", "openai-community/gpt2-medium"],
    )
    tokenizer: Literal["pretrained", "train"] = setting(
        "pretrained", "pretrained: the model's own; train: a new one from the training text, for from_scratch"
    )
    vocab_size: int = setting(
        4096, "tokens of a trained tokenizer: 256 bytes, the merges, and the end of text",
        ge=257, le=100_000, unit="tokens", log_from=512,
    )  # fmt: skip
    source: PathOrName = setting(
        "fables",
        "'fables' or 'python-reference' (shipped), a file, a folder, or a Hub id",
        min_length=1,
        examples=["fables", "python-reference", "Salesforce/wikitext"],
    )
    source_config: str = setting("", "configuration of a Hub data set, such as wikitext-2-raw-v1")
    source_split: str = setting("", "the only split to read; empty: all, and the source's own split is kept")
    source_revision: str = setting("", "branch, tag or commit of a Hub data set; empty: the newest")
    text_column: str = setting("", "column of a table that holds the text; empty: detected")
    document_separator: Annotated[str, AfterValidator(_known_separator)] = setting(
        "auto",
        "what ends a document, in texts and tables: 'row' (a line, a table's row), 'blank line', 'heading' "
        "(' = Title =' or '# Title'), 'pattern:' and a regular expression for the first row of a document, '100 rows', "
        "'file' (a single file is one continuous text), or the text between documents; auto: detected and reported",
        min_length=1,
        examples=["auto", "row", "blank line", "heading", "pattern:^CHAPTER", "100 rows", "file", "<|endoftext|>"],
    )
    chat_template: Literal["roles", "alpaca", "chatml", "plain"] = setting(
        "roles", "how chat and instruction data are written; roles: 'User: ...' and 'Assistant: ...'"
    )
    train_on: Literal["auto", "completion", "all"] = setting(
        "auto", "completion: learn and measure only what the assistant says; auto: do so if the text is chat data"
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] = setting(
        "auto", "encoding of text files, such as cp1252; auto: detected and reported"
    )
    streaming: bool = setting(
        False, "train on the text while it is read, without a copy: for more text than fits on the disk"
    )
    max_tokens: int = setting(
        0, "stop reading after this many tokens; 0: read everything. With streaming: tokens per epoch",
        ge=0, le=10**12, unit="tokens",
    )  # fmt: skip
    near_duplicates: Literal["report", "remove", "keep"] = setting(
        "report", "report: count them, keep them on one side of the split; remove: keep one of each; keep: no search"
    )
    validation_share: float = setting(0.1, "share of the documents set aside for validation", gt=0, le=0.4)
    test_share: float = setting(0.1, "share of the documents set aside for the final test", gt=0, le=0.4)
    block_size: int = setting(256, "tokens in one training row", ge=8, le=1024, unit="tokens", step=8)


class TrainingSettings(DataSettings):
    """How the model is trained; most names are those of `TrainingArguments`, `GPT2Config` and `LoraConfig`."""

    learning_rate: float = setting(2e-3, "peak of the learning-rate schedule", gt=0, le=0.1, log_from=1e-06)
    num_train_epochs: float = setting(
        1.5, "how many times the training text is read", gt=0, le=1000, unit="epochs", log_from=0.1
    )
    per_device_train_batch_size: int = setting(
        4, "blocks per pass through the model", ge=1, le=1024, unit="blocks", log_from=1
    )
    gradient_accumulation_steps: int = setting(1, "passes per optimizer step", ge=1, le=1024, unit="passes", log_from=1)
    lora_r: int = setting(
        0, "rank of a LoRA adapter; only the adapter is trained, the model is frozen; 0: all weights are trained",
        ge=0, le=256, log_from=1,
    )  # fmt: skip
    lora_alpha: int = setting(
        16, "scale of the LoRA adapter: its output is multiplied by lora_alpha / lora_r", ge=1, le=1024, log_from=1
    )
    lora_dropout: float = setting(0.0, "dropout on the input of the LoRA adapter", ge=0, le=0.9)
    optim: Literal["adamw_torch_fused", "adafactor", "muon"] = setting(
        "adamw_torch_fused",
        "the optimizer: AdamW keeps 8 bytes for each trained weight, adafactor almost none; muon, for pretraining, "
        "keeps 4 for each weight of the blocks' matrices, and trains the rest with AdamW",
    )
    weight_decay: float = setting(0.01, "how strongly trained weights are pulled towards zero", ge=0, le=1)
    adam_beta2: float = setting(
        0.999, "decay of AdamW's average of squared gradients; 0.95 is usual for pretraining", gt=0, lt=1, step=0.001
    )
    warmup_steps: float = setting(
        0.05, "steps in which the learning rate rises to its peak; below 1: a share of all steps",
        ge=0, le=100_000, unit="steps", log_from=0.01,
    )  # fmt: skip
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = setting(
        "cosine", "shape of the schedule after the warm-up"
    )
    max_grad_norm: float = setting(
        1.0, "gradient clipping: a gradient with a larger norm is scaled down to this", gt=0, le=1000, log_from=0.01
    )
    attn_pdrop: float = setting(
        0.0, "attention dropout; above 0 the faster, fused attention kernel cannot be used", ge=0, le=0.9
    )
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = setting(
        "auto", "number format of the matrix products; auto: bf16 if the hardware has it"
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, about a third slower"
    )
    torch_compile: Literal["auto", "always", "never"] = setting(
        "auto", "compile the model; auto: on a GPU under Linux, if the run is long enough to be worth it"
    )
    from_scratch: bool = setting(False, "start from random weights instead of the pretrained ones")
    n_layer: int = setting(0, "from scratch: number of blocks; 0: as model_name_or_path", ge=0, le=96)
    n_embd: int = setting(
        0, "from scratch: width of a token's vector, a multiple of n_head; 0: as model_name_or_path",
        ge=0, le=4096, step=8,
    )  # fmt: skip
    n_head: int = setting(0, "from scratch: attention heads per block; 0: as model_name_or_path", ge=0, le=64)
    n_positions: int = setting(
        0, "from scratch: tokens that the model can see at once; 0: as model_name_or_path",
        ge=0, le=1024, unit="tokens", step=8,
    )  # fmt: skip
    resid_pdrop: float = setting(
        0.1, "from scratch: dropout on the embeddings and after each layer; 0 if no text is read twice", ge=0, le=0.9
    )
    logging_steps: int = setting(10, "steps between two history rows", ge=1, le=100_000, unit="steps", log_from=1)
    eval_steps: int = setting(50, "steps between two validations", ge=1, le=100_000, unit="steps", log_from=1)
    save_steps: int = setting(
        100,
        "steps between two checkpoints; with early stopping: eval_steps",
        ge=1,
        le=100_000,
        unit="steps",
        log_from=1,
    )
    save_total_limit: int = setting(2, "checkpoints that are kept", ge=1, le=100)
    early_stopping_patience: int = setting(
        0, "stop after this many validations without a better loss and keep the best model; 0: never",
        ge=0, le=1000, unit="validations", log_from=1,
    )  # fmt: skip
    sample_prompt: str = setting(
        "The", "continued (by a chat model: answered) after each validation; empty: no sample", max_length=1000
    )
    report_to: Literal["none", "tensorboard"] = setting("none", "where else the history is logged")

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if self.lora_r and self.from_scratch:
            raise ValueError(
                f"lora_r = {self.lora_r} freezes a pretrained model, and from_scratch = True gives it "
                "random weights: set lora_r = 0, or from_scratch = False"
            )
        if self.lora_r and self.optim == "muon":
            raise ValueError(
                f"optim = 'muon' is for full weight matrices, and lora_r = {self.lora_r} trains only narrow adapter "
                "matrices: set lora_r = 0, or another optim"
            )
        for name in NEW_MODEL:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default and not self.from_scratch:
                raise ValueError(
                    f"{name} = {value!r} is for a new model, and from_scratch = False keeps the pretrained one: set "
                    f"from_scratch = True, or leave {name} out"
                )
        return self

    @property
    def new_shape(self) -> dict[str, int]:
        """The values of `GPT2Config` in which a new model differs from `model_name_or_path`."""
        return {name: value for name in NEW_SHAPE if (value := getattr(self, name))}

    @property
    def effective_batch_size(self) -> int:
        """Blocks per optimizer step on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class EvaluationSettings(RunSettings):
    """How a run is measured and sampled; sampling names are those of `GenerationConfig`."""

    stride: int = setting(128, "tokens scored per window", ge=1, le=1024, unit="tokens")
    per_device_eval_batch_size: int = setting(8, "windows per forward pass", ge=1, le=1024, unit="windows", log_from=1)
    prompt: str = setting(
        "", "text that both models continue, or a question to a chat model; empty: from a test document"
    )
    max_new_tokens: int = setting(160, "maximum length of a sample", ge=1, le=1000, unit="tokens")
    num_return_sequences: int = setting(2, "samples for each prompt", ge=1, le=64)
    temperature: Annotated[float, AfterValidator(_check_temperature)] = setting(
        0.6, "below 1 favours probable tokens", gt=0, le=5, step=0.05
    )
    top_k: int = setting(
        0, "sample from this many of the most probable tokens; 0: from all", ge=0, le=50257, unit="tokens", log_from=1
    )
    top_p: float = setting(0.9, "sample from the most probable tokens, up to this total probability", gt=0, le=1)
    repetition_penalty: float = setting(1.1, "above 1 makes repeated tokens less likely", ge=1, le=5, step=0.05)
    copy_samples: int = setting(12, "samples searched for copied text", ge=1, le=1000, unit="samples")
    general_source: PathOrName = setting(
        "python-reference", "text on which forgetting is measured; written like `source`", min_length=1
    )
    general_documents: int = setting(6, "documents of general_source that are read", ge=1, le=100_000, unit="documents")

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Build the settings as `Settings` does, but refuse a `general_source` that the run is trained on."""
        settings = super().from_notebook(namespace)
        is_there = (run_folder(settings.run) / "settings.json").exists()
        trained = read_run_settings(settings.run) if is_there else TrainingSettings(run=settings.run)
        refuse_training_text(settings.general_source, source=trained.source, run=settings.run)
        return settings


def without_effect(settings: Settings) -> dict[str, str]:
    """Return the settings that have no effect because of another setting's value: name -> that other setting."""
    return {
        name: other
        for name, (other, has_effect) in _DEPENDS_ON.items()
        if name in type(settings).model_fields and not has_effect(getattr(settings, other))
    }


def describe_without_effect(settings: DataSettings) -> str:
    """Return a sentence for each setting that was changed and has no effect; '' if there is none.

    >>> describe_without_effect(TrainingSettings(lora_alpha=64, lora_dropout=0.0))
    'lora_alpha = 64 has no effect with lora_r = 0.'
    """
    return " ".join(
        f"{name} = {getattr(settings, name)!r} has no effect with {other} = {getattr(settings, other)!r}."
        for name, other in without_effect(settings).items()
        if getattr(settings, name) != type(settings).model_fields[name].default
    )


def refuse_training_text(general_source: str, *, source: str, run: str) -> None:
    """Raise `SettingsError` if forgetting would be measured on the text that the run is trained on."""
    if general_source == source:
        other = "fables" if source == "python-reference" else "python-reference"
        raise SettingsError(
            f"general_source = {general_source!r} is the text that run {run!r} is trained on. Forgetting shows on "
            f"other text: choose another general_source, such as {other!r}."
        )


def known_settings() -> dict[str, Any]:
    """Return every setting of the course: name -> its pydantic field."""
    return {**TrainingSettings.model_fields, **EvaluationSettings.model_fields}


def preset_names() -> list[str]:
    """Return the names of the shipped presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(preset: str) -> dict[str, Any]:
    """Return a preset's values, checked; raise `SettingsError` for a name that no preset has."""
    if preset not in preset_names():
        raise SettingsError(f"There is no preset {preset!r}{did_you_mean(preset, preset_names())}")
    values = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"))
    return check_values(values)


def check_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` in their settings' types; raise `SettingsError` for an unknown name or a bad value.

    Text is read as the setting's type: `{"learning_rate": "3e-4"}` gives a float, `{"run": "007"}` stays text.
    """
    if unknown_names := [name for name in values if name not in known_settings()]:
        raise SettingsError("\n".join(unknown(name, known_settings()) for name in unknown_names))
    checked, faults = {}, []
    for name, value in values.items():  # one by one: rules between settings apply to the complete settings only
        refuse_truth_value(name, value, known_settings()[name])
        try:
            checked[name] = _checker(name).validate_python(value)
        except ValidationError as error:
            faults += [sentence({**fault, "loc": (name,)}, known_settings()) for fault in error.errors()]
    if faults:
        raise SettingsError("\n".join(faults))
    return checked


@functools.cache
def _checker(name: str) -> TypeAdapter:
    field = known_settings()[name]
    return TypeAdapter(Annotated[field.annotation, field])


def read_run_settings(run: str) -> TrainingSettings:
    """Return the settings a run was trained with, under the name its folder has now.

    Raises:
        SettingsError: there is no such run, or its settings.json is damaged or of another version.
    """
    path = run_folder(run) / "settings.json"
    if not path.exists():
        raise SettingsError(_no_run(run))
    values = read_json(path)["settings"]
    if strange := values.keys() - TrainingSettings.model_fields.keys():
        raise SettingsError(
            f"Run {run!r} is of another version of this course, which has the settings {', '.join(sorted(strange))}: "
            "open it with that version, or train it again under another name."
        )
    try:
        return TrainingSettings(**values | {"run": run})
    except SettingsError as error:  # edited by hand
        raise SettingsError(f"{path} cannot be used: {error}") from None


def describe_new_run(run: str) -> str:
    """Return a note that a run does not exist and would be trained; '' for one that exists, and for the default run.

    The name may be a typo.
    """
    if run == TrainingSettings().run or (run_folder(run) / "settings.json").exists():
        return ""
    return f"{_no_run(run)} It is trained now, with the default settings."


def _no_run(run: str) -> str:
    runs = [path.parent.name for path in runs_folder().glob("*/settings.json")]
    return f"There is no run {run!r} in {runs_folder()}{did_you_mean(run, runs)}"
