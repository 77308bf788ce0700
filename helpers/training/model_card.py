"""The model card, runs/<run>/model/README.md: what the model is, how it was measured, what it must not be trusted with.

Its metadata are the Hub's own (`huggingface_hub.ModelCardData`). To publish a run, log in once with `hf auth login`;
then one call sends the folder, card and all:

    from helpers.training.model_card import push_to_hub
    push_to_hub("my-run", "my-name/my-model")
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.data.sources import source_path
from helpers.display import first_line, last_part
from helpers.files import write_atomically
from helpers.model import shown_name
from helpers.settings import SettingsError, TrainingSettings, read_run_settings, run_folder

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, HfApi

_ENGLISH = ("fables", "python-reference")


def card(settings: TrainingSettings, data_facts: dict[str, Any], found: dict[str, Any] | None = None) -> str:
    """Return the text of a run's card.

    Args:
        settings: those of the run.
        data_facts: counts and hashes, as `data.json` has them.
        found: the figures, as `evaluation.json` has them; None before the run was evaluated.
    """
    from huggingface_hub import ModelCard

    sections = [
        f"---\n{_metadata(settings, found).to_yaml()}\n---\n\n# {settings.run}",
        _origin(settings, data_facts),
        _figures(found),
        _copying(found),
        _samples(found),
        _limits(settings),
        _settings_table(settings),
    ]
    return str(ModelCard("\n\n".join(section for section in sections if section) + "\n"))


def write(run: str) -> Path | None:
    """Write the card of a finished run afresh, whole or not at all; return where, or None while there is no model."""
    folder = run_folder(run)
    if not (folder / "model").is_dir():
        return None
    facts = json.loads((folder / "data" / "data.json").read_text(encoding="utf-8"))
    path = folder / "evaluation.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    target = folder / "model" / "README.md"
    write_atomically(target, card(read_run_settings(run), facts, found))
    return target


def push_to_hub(run: str, repo_id: str, *, private: bool = True, api: "HfApi | None" = None) -> str:
    """Send a run's model, tokenizer and card to the Hub in one commit; return the address.

    Args:
        run: a finished run.
        repo_id: 'owner/name'; the repository is made where there is none.
        private: whether a new repository is hidden from others.
        api: the Hub's client; by default that of the account that is logged in.

    Raises:
        SettingsError: the run has no model, or the Hub refuses; the sentence says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if write(run) is None:
        raise SettingsError(f"Run {run!r} has no final model yet: train it in notebook 03 first.")
    api = api or HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=run_folder(run) / "model", commit_message=f"Run {run}")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise SettingsError(
            f"The Hub did not take {repo_id!r} ({first_line(error)}): log in with `hf auth login` and "
            "check the name, 'owner/name', and the network."
        ) from None
    return str(address)


def shown(source: str) -> str:
    """Return a source's name, without the path where it is one, there or not: that is its owner's business.

    >>> shown("Salesforce/wikitext"), shown("letters/mine.txt")
    ('Salesforce/wikitext', 'mine.txt')
    """
    try:
        is_of_hub = source_path(source) is None
    except SettingsError:  # what looks like a path and is not there
        is_of_hub = False
    return source if is_of_hub else last_part(source)


def _metadata(settings: TrainingSettings, found: dict[str, Any] | None) -> Any:
    """Return the Hub's metadata: base model and data set only where the Hub has them."""
    from huggingface_hub import ModelCardData

    base, source = shown_name(settings.model_name_or_path), shown(settings.source)
    results = _results(found, source) if found and found.get("test") else None
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en" if settings.source in _ENGLISH else None,
        base_model=base if "/" in base and not settings.from_scratch else None,
        datasets=[source] if "/" in source else None,
        tags=["gpt2"],
        model_name=settings.run if results else None,
        eval_results=results,
    )


def _results(found: dict[str, Any], source: str) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    score = found["test"]["tuned"]
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


def _origin(settings: TrainingSettings, data_facts: dict[str, Any]) -> str:
    start = "random weights" if settings.from_scratch else f"`{shown_name(settings.model_name_or_path)}`"
    parts = data_facts["splits"].items()
    rows = [[name, f"{p['documents']:,}", f"{p['bytes']:,}", f"`{p['sha256']}`"] for name, p in parts]
    return (
        f"A GPT-2 trained from {start} on `{shown(settings.source)}`. It loads with nothing but transformers:\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        'pipeline("text-generation", model="this folder")("The", max_new_tokens=50)\n```\n\n'
        f"## Text\n\n{_table(['part', 'documents', 'bytes', 'SHA-256'], rows)}"
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    """Return a table in Markdown; whatever signs a value holds, it stays in its cell."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[str(value).replace("|", "\\|").replace("\n", " ") for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _figures(found: dict[str, Any] | None) -> str:
    if not found or not found.get("test"):
        return "## Figures\n\nNot evaluated yet."
    parts = [_comparison("Held-out documents of its own kind", found["test"])]
    if found.get("forgetting"):
        parts.append(_comparison(f"General text, not trained on: {found['forgetting']['source']}", found["forgetting"]))
    return "## Figures\n\n" + "\n\n".join(parts)


def _comparison(title: str, section: dict[str, Any]) -> str:
    difference = section["difference"]
    rows = [
        [
            name,
            figure_text(score["perplexity"], ",.2f", score["perplexity_interval"]),
            figure_text(score["bits_per_byte"], ".3f", score["bits_per_byte_interval"]),
            figure_text(score["word_perplexity"], ",.0f"),
        ]
        for name, score in (("base", section["base"]), ("this model", section["tuned"]))
    ]
    return (
        f"### {title}\n\n{_table(['model', 'perplexity', 'bits a byte', 'word perplexity'], rows)}\n\n"
        f"Bits a byte saved: {figure_text(difference['bits_per_byte'], '.3f', difference['interval'])}. In brackets: "
        f"{difference['confidence']:.0%} intervals, from {difference['resamples']:,} draws of the documents.\n\n"
        f"Protocol of the base model: {section['base']['protocol']}.\n\n"
        f"Protocol of this model: {section['tuned']['protocol']}."
    )


def figure_text(value: float | None, form: str, interval: list[float] | None = None) -> str:
    """Return a figure with its interval; None, as evaluation.json has it, is a figure beyond all numbers.

    >>> figure_text(3.14159, ".2f", [3.1, 3.2]), figure_text(None, ".2f")
    ('3.14 [3.10 to 3.20]', 'beyond counting')
    """
    if value is None:
        return "beyond counting"
    return f"{value:{form}}" + (f" [{interval[0]:{form}} to {interval[1]:{form}}]" if interval else "")


def _copying(found: dict[str, Any] | None) -> str:
    if not found or not found.get("copying"):
        return ""
    rows = found["copying"]["rows"]
    lines = [[f"{value:.3g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    return (
        "## Copying\n\nLongest runs that samples share with the training text, in tokens and in words, and the share "
        "of n-grams that it does not have; held-out text of the same length is the control.\n\n"
        f"{_table(list(rows[0]), lines)}"
    )


def _samples(found: dict[str, Any] | None) -> str:
    if not found or not found.get("speech"):
        return ""
    quoted = "\n\n".join(
        f"**{row['decoding']}**\n\n{_fenced(row['sample'])}" for row in found["speech"]["decodings"]
    )  # fmt: skip
    return f"## Samples\n\nSeed {found['speech']['settings']['seed']}; the first of each way of decoding.\n\n{quoted}"


def _fenced(text: str) -> str:
    """Return text as a block that nothing in it can end."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _limits(settings: TrainingSettings) -> str:
    return (
        "## Limits\n\n"
        "- It says what is usual in its text, not what is true. Do not use it where a wrong sentence does harm.\n"
        f"- It was measured on text like `{shown(settings.source)}` and on the general text above, on nothing else; "
        "for other text and other languages nothing is known.\n"
        "- It repeats what stands in its text and in its base model's, prejudice and private matters included. Look at "
        "the copying report, and at the licence of the text, before you publish it.\n"
        f"- It sees at most {settings.block_size} tokens as it was trained; further ones it has not learnt to use."
    )


def _settings_table(settings: TrainingSettings) -> str:
    values = settings.model_dump() | {
        "model_name_or_path": shown_name(settings.model_name_or_path),
        "source": shown(settings.source),
    }
    rows = [[f"`{name}`", value] for name, value in values.items()]
    return f"## Settings\n\n{_table(['setting', 'value'], rows)}"
