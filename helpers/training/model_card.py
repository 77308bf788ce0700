"""The model card, runs/<run>/model/README.md: what the model is, how it was measured, what its limits are.

Its text comes from the template `assets/templates/model_card.md`, its metadata follow the Hub's format.
`helpers.sharing` publishes it.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.sources import public_name
from helpers.display import backticks_around, fenced, metric_text
from helpers.files import read_json, write_atomically
from helpers.model import shown_name
from helpers.paths import ASSETS
from helpers.settings import TrainingSettings, read_run_settings, run_folder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_ENGLISH = ("fables", "python-reference")


def card_text(settings: TrainingSettings, data_facts: dict[str, Any], evaluation: dict[str, Any] | None = None) -> str:
    """Return the text of a run's model card, from the contents of `data.json` and, if present, `evaluation.json`."""
    from huggingface_hub import ModelCard

    evaluation = evaluation or {}
    base, source = shown_name(settings.model_name_or_path), public_name(settings.source)
    # Paths are also left out of the settings table: they reveal where people keep their files.
    values = settings.model_dump() | {"model_name_or_path": base, "source": source}
    parts = dict(data_facts["splits"])
    if "stream" in data_facts:
        parts = {"train (only its beginning; it was streamed)": parts.pop("train"), **parts}
    copying = evaluation.get("copying") or {"rows": []}
    card = ModelCard.from_template(
        _metadata(settings, evaluation.get("test"), base=base, source=source),
        template_path=str(ASSETS / "templates" / "model_card.md"),
        settings=settings,
        base=base,
        source=source,
        evaluation=evaluation,
        is_chat=data_facts.get("documents", {}).get("is_chat"),
        part_rows=[(name, f"{p['documents']:,}", f"{p['bytes']:,}", f"`{p['sha256']}`") for name, p in parts.items()],
        copying_rows=[
            [f"{v:.3g}" if isinstance(v, float) else "" if v is None else v for v in row.values()]
            for row in copying["rows"]
        ],
        setting_rows=[(f"`{name}`", value) for name, value in values.items()],
        score_rows=_score_rows,
        saved_text=_bits_saved,
        plain=_escape_markdown,
        code=_inline_code,
        fence=fenced,
    )
    return f"{card}\n"


def write_model_card(run: str) -> Path | None:
    """Rewrite the card of a finished run with its latest metrics; return its path, or None without a model."""
    folder = run_folder(run)
    if not (folder / "model").is_dir():
        return None
    metrics = folder / "evaluation.json"
    evaluation = read_json(metrics) if metrics.exists() else None
    path = folder / "model" / "README.md"
    write_atomically(path, card_text(read_run_settings(run), read_json(folder / "data" / "data.json"), evaluation))
    return path


def _bits_saved(section: dict[str, Any]) -> str:
    base, tuned = (section[model]["bits_per_byte"] for model in ("base", "tuned"))
    # the difference of the rounded values, as in the verdict: the exact one may round differently
    saved = None if None in (base, tuned) else round(base, 3) - round(tuned, 3)
    return metric_text(saved, ".3f", section["difference"]["interval"])


def _metadata(settings: TrainingSettings, test: dict[str, Any] | None, *, base: str, source: str) -> "ModelCardData":
    """Return the metadata for the Hub; base model and data set only if the Hub has them."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en" if settings.source in _ENGLISH else None,
        base_model=base if "/" in base and not settings.from_scratch else None,
        datasets=[source] if "/" in source else None,
        tags=["gpt2"],
        model_name=settings.run if test else None,
        eval_results=_eval_results(test["tuned"], source) if test else None,
    )


def _eval_results(score: dict[str, Any], source: str) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=f"{source}, test part {score['text_sha256'][:12]}",
            metric_type=metric,
            metric_name=f"{name} ({score['protocol']})",
            metric_value=round(score[metric], 4),
        )
        for metric, name in (("perplexity", "Perplexity"), ("bits_per_byte", "Bits per byte"))
        if score[metric] is not None
    ]


def _score_rows(section: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a table that compares the base model with the tuned one."""
    return [
        [
            name,
            metric_text(score["perplexity"], ",.2f", score["perplexity_interval"]),
            metric_text(score["bits_per_byte"], ".3f", score["bits_per_byte_interval"]),
            metric_text(score["word_perplexity"], ",.4g"),
        ]
        for name, score in (("base", section["base"]), ("this model", section["tuned"]))
    ]


def _escape_markdown(value: Any) -> str:
    r"""Return a value as Markdown without HTML, links, or anything that ends a table cell.

    >>> print(_escape_markdown("<b>[x](y) | z"))
    \<b>\[x](y) \| z
    """
    text = " ".join(str(value).splitlines())
    return text if re.fullmatch(r"`\w+`", text) else re.sub(r"([\\`<\[|])", r"\\\1", text)  # our own code, unchanged


def _inline_code(text: str) -> str:
    """Return text as code within a line of Markdown."""
    ticks, space = backticks_around(text), " " * ("`" in text)
    return f"{ticks}{space}{' '.join(text.splitlines())}{space}{ticks}"
