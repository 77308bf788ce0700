"""Every setting of the course, declared once; every preset; every path.

A setting's type, default, bounds, unit and help are in its field. Validation and its messages, papermill parameters,
the command line, sliders and the tables in notebooks are all made from these fields. Where
`transformers.TrainingArguments`, `GPT2Config`, `GenerationConfig` or peft's `LoraConfig` has a name for a setting, that
is its name here.
"""

import ast
import codecs
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from helpers.display import did_you_mean, html_table

ASSETS = Path(__file__).parent / "assets"
PRESETS = ASSETS / "presets"
POCKET = ASSETS / "pocket"
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PATH_SETTINGS = ("source", "general_source", "model_name_or_path")  # each may be the name of a file or folder

LEAST_VOCABULARY = 257  # 256 bytes and the end of text

_SEPARATORS = ("auto", "row", "line", "blank line", "heading", "file")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHIPPED = ("fables", "python-reference", "pocket")  # names that no file can take
_WINDOWS_PATH = re.compile(r"([A-Za-z]):[\\/](.*)")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class SettingsError(ValueError):
    """An invalid setting; the message has one sentence per fault: what was found and what is allowed."""


def runs_folder() -> Path:
    """Return the folder of all runs: `COURSE_RUNS` if it is set, else `runs` next to the notebooks.

    A package that was installed from a wheel has no notebooks beside it: then `runs` is in the current folder.
    """
    beside = NOTEBOOKS.parent if NOTEBOOKS.is_dir() else Path()
    return Path(os.environ.get("COURSE_RUNS") or beside / "runs").absolute()


def run_folder(run: str) -> Path:
    """Return the folder of one run; raise `SettingsError` for a name that is not a plain file name.

    >>> run_folder("../x")
    Traceback (most recent call last):
    helpers.settings.SettingsError: run = '../x' is not a plain name: use 1 to 64 letters, digits, '.', '_' or '-', \
starting with a letter or digit.
    """
    try:
        return runs_folder() / _plain_name(run)
    except ValueError as error:
        raise SettingsError(f"run = {run!r} {error}.") from None


def _plain_name(name: str) -> str:
    if not _RUN_NAME.fullmatch(name):
        raise ValueError(
            "is not a plain name: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit"
        )
    if _WINDOWS_DEVICE.fullmatch(name) or name.endswith("."):
        raise ValueError("is a name Windows cannot use for a folder: choose another")
    return name


def find_path(name: str, *, folder: Path | None = None) -> Path | None:
    """Return the absolute path of a file or folder in the caller's folder; None where there is none of that name.

    `~` is the home folder, and in WSL a path with a Windows drive letter is looked for where the drive is mounted.
    Notebooks that run in their own folder also find what is next to it.

    Args:
        name: a path as a user writes it.
        folder: where a relative path begins; the current folder when left out.
    """
    path = os.path.expanduser(name)  # noqa: PTH111 - Path.expanduser raises for a name such as ~draft
    if os.name != "nt" and (drive := _WINDOWS_PATH.fullmatch(path)):
        path = f"/mnt/{drive[1].lower()}/{drive[2]}".replace("\\", "/")
    start = folder or Path.cwd()
    for beside in [start, *([start.parent] if start == NOTEBOOKS else [])]:
        if os.path.lexists(found := os.path.abspath(beside / path)):  # noqa: PTH100 - resolve() would follow links
            return Path(found)
    return None


def stored_path(name: str, *, folder: Path | None = None) -> str:
    """Return a path, or the name where nothing is there, so that it means the same everywhere from now on.

    Arguments as in `find_path`.
    """
    found = None if name in ("", *_SHIPPED) else find_path(name, folder=folder)
    return name if found is None else str(found)


def is_same_place(before: str, now: str) -> bool:
    """Return whether two paths or names can be the same, where an old run or study stored a path as it was written.

    >>> is_same_place("models/mine", "/data/models/mine"), is_same_place("models/mine", "/data/mine")
    (True, False)
    """
    return before == now or (
        Path(now).is_absolute() and Path(now).parts[-len(Path(before).parts) :] == Path(before).parts
    )


def _known_encoding(name: str) -> str:
    try:
        return name if name == "auto" else codecs.lookup(name).name
    except LookupError:
        raise ValueError(
            "is not an encoding that Python knows: use 'auto', 'utf-8', 'cp1252', 'utf-16' or another"
        ) from None


def _known_separator(separator: str) -> str:
    """Return the separator; refuse a broken pattern, and what is nearly a value but would be taken as text."""
    if separator.startswith("pattern:"):
        try:
            re.compile(separator.removeprefix("pattern:"))
        except re.error as error:
            raise ValueError(f"has a broken regular expression after 'pattern:' ({error})") from None
        if separator == "pattern:":
            raise ValueError("needs a regular expression after 'pattern:', as in 'pattern:^CHAPTER'")
    if separator in _SEPARATORS or re.fullmatch(r"[1-9]\d* rows?", separator) or "\n" in separator:
        return separator
    plain = " ".join(re.split(r"[\s_-]+", separator.strip().lower())).removesuffix("s")
    if plain in _SEPARATORS or re.fullmatch(r"\d* ?(row|line)", plain):
        raise ValueError(f"is not a value: use {', '.join(map(repr, _SEPARATORS))} or such as '100 rows'")
    return separator


class Settings(BaseModel):
    """Base class of all settings: frozen, no unknown names, errors in plain sentences, shown as a table."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(
                "\n".join(_sentence(fault, type(self).model_fields) for fault in error.errors())
            ) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """Build the settings from a notebook's variables: pass `globals()`.

        Variables named like a setting are taken. A parameter that papermill injected and that no setting has is an
        error: papermill itself only logs it and goes on.
        """
        unknown = _injected_names(namespace.get("In", [])) - set(cls.model_fields)
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        return cls(**values, **{name: namespace[name] for name in unknown})

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:
        """Build the settings from a preset and changes to it; the preset's values for other settings are left out."""
        values = {name: value for name, value in read_preset(preset).items() if name in cls.model_fields}
        return cls(**{**values, **changes})

    def part(self, kind: type["Settings"]) -> Any:
        """Return the subset of these settings that `kind` declares: `training.part(DataSettings)`."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields if hasattr(self, name)})

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per setting: name, value, unit, help."""
        return [
            {"name": name, "value": getattr(self, name), "unit": unit(field), "help": field.description}
            for name, field in type(self).model_fields.items()
        ]

    def _repr_html_(self) -> str:
        fields = type(self).model_fields
        changed = [row for row in self.rows() if row["value"] != fields[row["name"]].default]
        head = _html_rows(changed) if changed else "<p>Every setting has its default value.</p>"
        return f"{head}<details><summary>all {len(fields)} settings</summary>{_html_rows(self.rows())}</details>"


def _html_rows(rows: list[dict[str, Any]]) -> str:
    cells = ("name", "value", "unit", "help")
    return html_table(cells, ([str(row[cell]) for cell in cells] for row in rows))  # every digit of a value


class RunSettings(Settings):
    """The run and its seed."""

    run: Annotated[str, AfterValidator(_plain_name)] = Field("pocket", description="name of the run's folder")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="makes split, order and samples repeatable")


class DataSettings(RunSettings):
    """Which model's tokens, which text, how it is split by document, and how long a block is."""

    model_name_or_path: Annotated[str, AfterValidator(lambda name: stored_path(name))] = Field(
        "pocket",
        min_length=1,
        examples=["pocket", "openai-community/gpt2", "distilbert/distilgpt2", "openai-community/gpt2-medium"],
        description="'pocket' (shipped), a folder, or a Hub id such as openai-community/gpt2",
    )
    tokenizer: Literal["pretrained", "train"] = Field(
        "pretrained",
        description="pretrained: that of the model; train: a new one, trained on the training text, for from_scratch",
    )
    vocab_size: int = Field(
        4096, ge=LEAST_VOCABULARY, le=100_000, json_schema_extra={"unit": "tokens", "scale": "log", "least": 512},
        description="tokens of a trained tokenizer: 256 bytes, the merges, and the end of text",
    )  # fmt: skip
    source: Annotated[str, AfterValidator(lambda name: stored_path(name))] = Field(
        "fables",
        min_length=1,
        examples=["fables", "python-reference", "Salesforce/wikitext"],
        description="'fables' or 'python-reference' (shipped), a file, a folder, or a Hub id",
    )
    source_config: str = Field("", description="configuration of a Hub data set, such as wikitext-2-raw-v1")
    source_split: str = Field("", description="the only split to read; empty: all, and the source's own split is kept")
    source_revision: str = Field("", description="branch, tag or commit of a Hub data set; empty: the newest")
    text_column: str = Field("", description="column of a table that holds the text; empty: detected")
    document_separator: Annotated[str, AfterValidator(_known_separator)] = Field(
        "auto",
        min_length=1,
        examples=["auto", "row", "blank line", "heading", "pattern:^CHAPTER", "100 rows", "file", "<|endoftext|>"],
        description="what ends a document, in texts and tables: 'row' (a line, a table's row), 'blank line', 'heading' "
        "(as in WikiText), 'pattern:' and a regular expression that a first row matches, '100 rows', 'file' (a single "
        "one is a continuous text), or the text between documents; auto: recognised and reported",
    )
    chat_template: Literal["roles", "alpaca", "chatml", "plain"] = Field(
        "roles", description="how chat and instruction data are written; roles: 'User: ...' and 'Assistant: ...'"
    )
    train_on: Literal["all", "completion"] = Field(
        "all", description="completion: in chat data, learn and measure what the assistant says only"
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] = Field(
        "auto", description="encoding of text files, such as cp1252; auto: detected and reported"
    )
    streaming: bool = Field(
        False, description="train on the text while it is read, without a copy of it: for more text than fits the disk"
    )
    max_tokens: int = Field(
        0,
        ge=0,
        le=10**12,
        json_schema_extra={"unit": "tokens"},
        description="stop reading after this many tokens; 0: read everything. With streaming: tokens of an epoch",
    )
    near_duplicates: Literal["report", "remove", "keep"] = Field(
        "report",
        description="report: count them, keep them on one side of the split; remove: keep one of each; keep: no search",
    )
    validation_share: float = Field(0.1, gt=0, le=0.4, description="share of the documents set aside for validation")
    test_share: float = Field(0.1, gt=0, le=0.4, description="share of the documents set aside for the final test")
    block_size: int = Field(
        256, ge=8, le=1024, json_schema_extra={"unit": "tokens", "step": 8}, description="tokens in one training row"
    )


class TrainingSettings(DataSettings):
    """How the model is trained; the names are those of `TrainingArguments`, `GPT2Config` and `LoraConfig`."""

    learning_rate: float = Field(
        2e-3, gt=0, le=0.1, json_schema_extra={"scale": "log", "least": 1e-6},
        description="peak of the learning-rate schedule",
    )  # fmt: skip
    num_train_epochs: float = Field(
        1.5, gt=0, le=1000, json_schema_extra={"unit": "epochs", "scale": "log", "least": 0.1},
        description="how many times the training text is read",
    )  # fmt: skip
    per_device_train_batch_size: int = Field(
        4,
        ge=1,
        le=1024,
        json_schema_extra={"unit": "blocks", "scale": "log"},
        description="blocks per pass through the model",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=1024, json_schema_extra={"unit": "passes", "scale": "log"}, description="passes per optimizer step"
    )
    lora_r: int = Field(
        0, ge=0, le=256, json_schema_extra={"scale": "log"},
        description="rank of a LoRA adapter that is trained beside the frozen model; 0: all weights are trained",
    )  # fmt: skip
    lora_alpha: int = Field(
        16, ge=1, le=1024, json_schema_extra={"scale": "log"},
        description="scale of the LoRA adapter: its output is multiplied by lora_alpha / lora_r",
    )  # fmt: skip
    lora_dropout: float = Field(0.0, ge=0, le=0.9, description="dropout on the input of the LoRA adapter")
    optim: Literal["adamw_torch_fused", "adafactor", "muon"] = Field(
        "adamw_torch_fused",
        description="the optimizer; adafactor keeps a few bytes where AdamW keeps 8 for each trained weight; muon, for "
        "pretraining, keeps 4 for those of the blocks' matrices, and trains the rest with AdamW",
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="how strongly trained weights are pulled towards zero")
    adam_beta2: float = Field(
        0.999, gt=0, lt=1, json_schema_extra={"step": 0.001},
        description="decay of AdamW's average of squared gradients; 0.95 is usual for pretraining",
    )  # fmt: skip
    warmup_steps: float = Field(
        0.05, ge=0, le=100_000, json_schema_extra={"unit": "steps", "scale": "log", "least": 0.01},
        description="steps in which the learning rate rises to its peak; below 1: a share of all steps",
    )  # fmt: skip
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        "cosine", description="shape of the schedule after the warm-up"
    )
    max_grad_norm: float = Field(
        1.0, gt=0, le=1000, json_schema_extra={"scale": "log", "least": 0.01},
        description="gradient clipping: a gradient with a larger norm is scaled down to this",
    )  # fmt: skip
    attn_pdrop: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="attention dropout; above 0 the faster, fused attention kernel cannot be used",
    )
    mixed_precision: Literal["auto", "bf16", "fp16", "no"] = Field(
        "auto", description="number format of the matrix products; auto: bf16 if the hardware has it"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third slower"
    )
    torch_compile: Literal["auto", "always", "never"] = Field(
        "auto", description="compile the model; auto: on a GPU under Linux, if the run is long enough to be worth it"
    )
    from_scratch: bool = Field(False, description="start from random weights instead of the pretrained ones")
    n_layer: int = Field(0, ge=0, le=96, description="from scratch: number of blocks; 0: as model_name_or_path")
    n_embd: int = Field(
        0, ge=0, le=4096, json_schema_extra={"step": 8},
        description="from scratch: width of a token's vector, a multiple of n_head; 0: as model_name_or_path",
    )  # fmt: skip
    n_head: int = Field(0, ge=0, le=64, description="from scratch: attention heads per block; 0: as model_name_or_path")
    n_positions: int = Field(
        0, ge=0, le=1024, json_schema_extra={"unit": "tokens", "step": 8},
        description="from scratch: tokens that the model can see at once; 0: as model_name_or_path",
    )  # fmt: skip
    resid_pdrop: float = Field(
        0.1, ge=0, le=0.9,
        description="from scratch: dropout on the embeddings and after each layer; 0 where no text is read twice",
    )  # fmt: skip
    logging_steps: int = Field(
        10, ge=1, le=100_000, json_schema_extra={"unit": "steps", "scale": "log"},
        description="steps between two history rows",
    )  # fmt: skip
    eval_steps: int = Field(
        50, ge=1, le=100_000, json_schema_extra={"unit": "steps", "scale": "log"},
        description="steps between two validations",
    )  # fmt: skip
    save_steps: int = Field(
        100, ge=1, le=100_000, json_schema_extra={"unit": "steps", "scale": "log"},
        description="steps between two checkpoints",
    )  # fmt: skip
    save_total_limit: int = Field(2, ge=1, le=100, description="checkpoints that are kept")
    early_stopping_patience: int = Field(
        0, ge=0, le=1000, json_schema_extra={"unit": "validations", "scale": "log"},
        description="stop after this many validations without a better loss and keep the best model; 0: never",
    )  # fmt: skip
    sample_prompt: str = Field("The", max_length=1000, description="continued after each validation; empty: no sample")
    report_to: Literal["none", "tensorboard"] = Field("none", description="where the history is logged as well")

    @model_validator(mode="after")
    def _check_that_lora_has_a_base(self) -> Self:
        if self.lora_r and self.from_scratch:
            raise ValueError(
                f"lora_r = {self.lora_r} freezes a pretrained model, and from_scratch = True gives it "
                "random weights: set lora_r = 0, or from_scratch = False"
            )
        return self

    @model_validator(mode="after")
    def _check_that_muon_trains_matrices(self) -> Self:
        if self.lora_r and self.optim == "muon":
            raise ValueError(
                f"optim = 'muon' is for complete matrices, and lora_r = {self.lora_r} trains narrow ones beside them: "
                "set lora_r = 0, or another optim"
            )
        return self

    @model_validator(mode="after")
    def _check_that_only_a_new_model_is_shaped(self) -> Self:
        for name in ("tokenizer", "n_layer", "n_embd", "n_head", "n_positions", "resid_pdrop"):
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
        names = ("n_layer", "n_embd", "n_head", "n_positions")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def effective_batch_size(self) -> int:
        """Blocks that one optimizer step learns from on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class EvaluationSettings(RunSettings):
    """How a run is measured and sampled; sampling names are those of `GenerationConfig`."""

    stride: int = Field(
        128, ge=1, le=1024, json_schema_extra={"unit": "tokens"}, description="tokens scored per window"
    )
    per_device_eval_batch_size: int = Field(
        8, ge=1, le=1024, json_schema_extra={"unit": "windows", "scale": "log"}, description="windows per forward pass"
    )
    prompt: str = Field("", description="text that both models continue; empty: the first words of a test document")
    max_new_tokens: int = Field(
        160, ge=1, le=1000, json_schema_extra={"unit": "tokens"}, description="maximum length of a sample"
    )
    num_return_sequences: int = Field(2, ge=1, le=64, description="samples for each prompt")
    temperature: float = Field(
        0.6, gt=0, le=5, json_schema_extra={"step": 0.05}, description="below 1 favours probable tokens"
    )
    top_k: int = Field(
        0, ge=0, le=50257, json_schema_extra={"unit": "tokens", "scale": "log"},
        description="sample from this many of the most probable tokens; 0: from all",
    )  # fmt: skip
    top_p: float = Field(0.9, gt=0, le=1, description="sample from the most probable tokens that sum to this")
    repetition_penalty: float = Field(
        1.1, ge=1, le=5, json_schema_extra={"step": 0.05}, description="above 1 makes repeated tokens less likely"
    )
    copy_samples: int = Field(
        12, ge=1, le=1000, json_schema_extra={"unit": "samples"}, description="samples searched for copied text"
    )
    general_source: Annotated[str, AfterValidator(lambda name: stored_path(name))] = Field(
        "python-reference", min_length=1, description="text that measures forgetting; written like `source`"
    )
    general_documents: int = Field(
        6, ge=1, le=100_000, json_schema_extra={"unit": "documents"}, description="how many documents of it are read"
    )


def unit(field: Any) -> str:
    """Return the unit of a setting's field, or an empty string."""
    return (field.json_schema_extra or {}).get("unit", "")


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
    unknown = [name for name in values if name not in known_settings()]
    if unknown:
        raise SettingsError("\n".join(_unknown(name, known_settings()) for name in unknown))
    checked, faults = {}, []
    for name, value in values.items():  # one by one: a rule between two of them is for the complete settings
        try:
            checked[name] = _checker(name).validate_python(value)
        except ValidationError as error:
            faults += [_sentence({**fault, "loc": (name,)}, known_settings()) for fault in error.errors()]
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
        SettingsError: there is no such run.
    """
    path = run_folder(run) / "settings.json"
    if not path.exists():
        raise SettingsError(f"There is no run {run!r} in {runs_folder()}{did_you_mean(run, _runs())}")
    return TrainingSettings(**json.loads(path.read_text(encoding="utf-8"))["settings"] | {"run": run})


def _runs() -> list[str]:
    return sorted(path.parent.name for path in runs_folder().glob("*/settings.json"))


def _injected_names(cells: list[str]) -> set[str]:
    """Return the names assigned in the cells that papermill injected, which begin with a comment line of its own."""
    sources = [cell for cell in cells if cell.startswith("# Parameters\n")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _sentence(fault: Any, fields: Mapping[str, Any]) -> str:
    """Return one of pydantic's faults as one sentence."""
    if not fault["loc"]:  # a rule between several settings, which names them itself
        return f"{fault['ctx']['error']}."
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        return _unknown(name, fields)
    given = f"{name} = {fault['input']!r}"
    if fault["type"] == "value_error":
        return f"{given} {fault['ctx']['error']}."
    return f"{given} is not allowed: it must be {allowed(fields[name])}."


def allowed(field: Any) -> str:
    """Return in words what a setting's field allows.

    >>> allowed(TrainingSettings.model_fields["gradient_accumulation_steps"])
    'a whole number, at least 1, at most 1024'
    """
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if getattr(field.annotation, "__origin__", None) is Literal:
        return "one of " + ", ".join(repr(value) for value in field.annotation.__args__)
    parts = [words[field.annotation]]
    for bound in field.metadata:
        for attribute, phrase in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            if hasattr(bound, attribute):
                parts.append(f"{phrase} {getattr(bound, attribute)}")
        if hasattr(bound, "min_length"):
            parts.append("not empty")
    return ", ".join(parts)


def _unknown(name: str, names: Any) -> str:
    return f"There is no setting {name!r}{did_you_mean(name, names)}"
