"""Export a run's model: as a GGUF file with what Ollama and llama.cpp need, or as safetensors in float16.

An export is a folder, runs/<run>/export/<format>/, with a README that says how to use it and how much quality the lower
precision costs, measured on the run's test documents. The model in runs/<run>/model/ does not change.
"""

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from helpers.data import open_prepared
from helpers.data.in_memory import dialogues
from helpers.data.sources.chat import Dialogue, find_template
from helpers.display import MIB, PlainTextMixin, size_text
from helpers.evaluation import load_tuned, score
from helpers.evaluation.record import read_section
from helpers.files import atomic_folder, fill_template, free_bytes, write_atomically
from helpers.model import check_sound, load_model, quiet
from helpers.settings import EvaluationSettings, SettingsError, read_run_settings, run_folder
from helpers.sharing.gguf_file import GgufType, import_gguf, read_gguf, write_gguf

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

Format = Literal["gguf", "safetensors-fp16"]
FORMATS: tuple[str, ...] = get_args(Format)
TYPES: tuple[str, ...] = get_args(GgufType)
BYTES_PER_WEIGHT = {"gguf-f16": 2, "gguf-q8_0": 34 / 32, "safetensors-fp16": 2}
_MEASURED_CHARACTERS = 8_000  # of test documents: about 3,000 tokens, a second or two on a CPU
_REPEAT_LAST_N = -1  # llama.cpp's value for the whole context, to which transformers applies the penalty


@dataclass(frozen=True)
class Export(PlainTextMixin):
    """An exported model, in the format 'gguf-f16', 'gguf-q8_0' or 'safetensors-fp16'.

    `perplexity` is that of the weights read back from the file, `perplexity_before` that of the run's float32 weights
    on the same test documents, and `protocol` says how both were measured.
    """

    folder: Path
    format: str
    perplexity: float
    perplexity_before: float
    protocol: str

    @property
    def weights_file(self) -> Path:
        """The file with the weights."""
        return next(path for path in self.folder.iterdir() if path.suffix in (".gguf", ".safetensors"))

    @property
    def loss_in_quality(self) -> float:
        """The relative increase of the perplexity over that of the float32 weights; negative if it is lower."""
        return self.perplexity / self.perplexity_before - 1

    def __str__(self) -> str:
        measured = (
            f"perplexity {self.perplexity:.4g}, float32 {self.perplexity_before:.4g} ({self.loss_in_quality:+.3%})"
        )
        return f"{self.weights_file}: {_size(self.weights_file)}; {measured} on {self.protocol}"


def export_model(run: str, *, to: Format = "gguf", gguf_type: GgufType = "f16") -> Export:
    """Write a finished run's model in another format, and measure what that costs.

    Args:
        run: a finished run.
        to: 'gguf' for llama.cpp and Ollama, 'safetensors-fp16' for transformers with half the bytes.
        gguf_type: 'f16', or 'q8_0' for about half the size of 'f16'.

    Returns:
        The folder runs/<run>/export/<format>/ and the measured perplexities. An existing export is replaced.

    Raises:
        SettingsError: the run is not finished, its model is not a GPT-2 that the format supports, the disk has too
            little space, or the `gguf` package is not installed; nothing is left behind.
    """
    for name, value, values in (("to", to, FORMATS), ("type", gguf_type, TYPES)):
        if value not in values:
            raise SettingsError(f"{name} = {value!r} is not a format: use {' or '.join(map(repr, values))}.")
    read_run_settings(run)  # reports an unknown name as such
    if to == "gguf":
        import_gguf()
    model, tokenizer = load_tuned(run)
    check_sound(model, tokenizer)
    kind = f"gguf-{gguf_type}" if to == "gguf" else to
    folder = run_folder(run) / "export" / kind
    _check_space(folder, model, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as new:
        if to == "gguf":
            file = f"{run}-{gguf_type}.gguf"
            write_gguf(new / file, model, tokenizer, name=run, gguf_type=gguf_type, sampling=sampling_of(run))
            _write_from_template(new, "Modelfile", run, (model, tokenizer), file=file)
        else:
            file = "model.safetensors"
            with quiet():
                copy.deepcopy(model).half().save_pretrained(new)
            tokenizer.save_pretrained(new)
        export = _measure(run, new, kind, file, (model, tokenizer))
        size = _size(new / file)
        _write_from_template(new, "README.md", run, (model, tokenizer), file=file, export=export, size=size)
    return replace(export, folder=folder)


def sampling_of(run: str) -> EvaluationSettings:
    """Return the sampling settings that notebook 04 used for a run; the defaults before it has run."""
    speech = read_section(run, "speech")
    return EvaluationSettings(**(speech["settings"] if speech else {}) | {"run": run})


def _check_space(folder: Path, model: "GPT2LMHeadModel", kind: str) -> None:
    needed = model.num_parameters() * BYTES_PER_WEIGHT[kind] + 8 * MIB  # vocabulary, merges, cards
    if free_bytes(folder) < needed:
        raise SettingsError(
            f"The export needs {size_text(needed)} and the disk of {folder} has {size_text(free_bytes(folder))} free: "
            "delete old checkpoints or runs, or set COURSE_RUNS to a folder on another disk."
        )


def _measure(
    run: str, folder: Path, kind: str, file: str, original: tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]
) -> Export:
    """Score the run's weights and those read back from the exported file on the same test documents."""
    model, tokenizer = original
    context = min(read_run_settings(run).block_size, model.config.n_positions)
    documents, texts, n_left = open_prepared(run).documents["test"], [], _MEASURED_CHARACTERS
    for text in dialogues(documents):
        texts.append(text if isinstance(text, Dialogue) else text[:n_left])
        n_left -= len(text)
        if n_left <= 0:
            break
    exported = read_gguf(folder / file, model) if kind.startswith("gguf") else load_model(str(folder))
    run_score, export_score = (
        score(
            weights,
            tokenizer,
            texts,
            stride=context,
            context=context,
            protocol="passages" if "continues" in documents.column_names else "documents",
            name=f"run {run}",
        )
        for weights in (model, exported)
    )
    measured = f"{run_score.n_documents:,} test {run_score.protocol_name} of {run_score.n_tokens:,} tokens"
    protocol = f"{measured}, context {context}, stride {context}"
    return Export(folder, kind, export_score.perplexity, run_score.perplexity, protocol)


def _write_from_template(
    folder: Path, name: str, run: str, pair: "tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]", **values: object
) -> None:
    """Fill in the template of a Modelfile or README, for a model and its tokenizer."""
    model, tokenizer = pair
    template = "export_readme.md" if name == "README.md" else name
    text = fill_template(
        f"templates/{template}",
        run=run,
        ollama_name=ollama_name(run),
        n_positions=model.config.n_positions,
        sampling=sampling_of(run),
        repeat_last_n=_REPEAT_LAST_N,
        end_of_text="<|endoftext|>",
        chat=find_template(tokenizer),
        **values,
    )
    write_atomically(folder / name, text)


def ollama_name(run: str) -> str:
    """Return a run's name in the form that Ollama accepts.

    >>> ollama_name("My.run_2"), ollama_name("x--")
    ('my.run_2', 'x')
    """
    return re.sub(r"[^a-z0-9._-]", "-", run.lower()).strip("-._") or "model"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"
