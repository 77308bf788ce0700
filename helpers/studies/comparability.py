"""Check that a study's trials can be ranked: same text, context and vocabulary, and a metric that all of them record.

Otherwise three things would be wrong: the "best so far", what a search learns, and which trials are pruned.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from helpers.paths import COMMAND, NOTEBOOKS
from helpers.settings import DataSettings, SettingsError
from helpers.training.shape import read_shape

Metric = Literal["perplexity", "bits_per_byte", "eval_loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Fault = tuple[tuple, str]  # its place in the file, and one sentence
_VOCABULARY_SETTINGS = {"model_name_or_path", "tokenizer", "vocab_size"}
_TEXT_SETTINGS = DataSettings.model_fields.keys() - {"run", "block_size"} - _VOCABULARY_SETTINGS
# metric -> the shipped notebooks that measure it
_MEASURED_BY = {"eval_loss": ("03", "04"), "bits_per_byte": ("04",), "perplexity": ("04",)}


def ranking_faults(vary: Mapping[str, Any], metric: Metric, *, prune: bool) -> Iterator[Fault]:
    """Find varied settings that change a study's metric for reasons other than a better model."""
    # the pruner compares validation losses, whatever metric the study optimises
    metrics = {metric, "eval_loss"} if prune else {metric}
    for name, variation in vary.items():
        is_varied = not isinstance(variation, list) or len(variation) > 1
        if is_varied and (reason := _reason(name, variation, metrics)):
            yield (
                ("vary", name),
                f"{reason} Make one study per value, with {name} under `settings`; `{COMMAND} compare STUDY STUDY` "
                "shows them side by side.",
            )


def _reason(name: str, variation: Any, metrics: set[str]) -> str:
    """Return why values of a setting cannot be ranked by these metrics; empty if they can."""
    if name in _TEXT_SETTINGS:
        return f"{name} changes the text that is measured, and metrics of different texts cannot be ranked."
    if name == "block_size" and "eval_loss" in metrics:
        return (
            "block_size changes how much context each token of the validation text has, so longer blocks give a "
            "smaller loss without a better model."
        )
    if name == "stride" and metrics & {"bits_per_byte", "perplexity"}:
        return "stride changes how the metric is measured, not the model."
    is_same = name == "model_name_or_path" and _n_vocabularies(variation) < 2
    if name in _VOCABULARY_SETTINGS and metrics != {"bits_per_byte"} and not is_same:
        return (
            f"{name} gives models of different vocabularies, whose losses per token cannot be ranked; "
            "optimise: bits_per_byte, without prune, can."
        )
    return ""


def _n_vocabularies(variation: Any) -> int:
    """Return how many different vocabulary sizes the models have, as far as known without a download."""
    sizes = set()
    for name in variation if isinstance(variation, list) else ():
        try:
            sizes.add(read_shape(str(name)).vocab_size)
        except SettingsError:
            continue  # not known without a download, or an error that is reported elsewhere
    return len(sizes)


def metric_faults(metric: Metric, notebooks: Sequence[Path]) -> Iterator[Fault]:
    """Find a metric that none of the notebooks measures; what users' own notebooks measure is unknown."""
    measuring = _MEASURED_BY[metric]
    shipped = [path.name[:2] for path in notebooks if path.parent.absolute() == NOTEBOOKS.absolute()]
    if not notebooks and metric == "eval_loss":
        return  # training alone measures it
    if len(shipped) == len(notebooks) and not set(measuring) & set(shipped):
        yield (
            ("notebooks",),
            f"None of the notebooks {', '.join(shipped) or '[]'} measures {metric}, so every trial would fail: add "
            f'"{measuring[0]}" to `notebooks`.',
        )
