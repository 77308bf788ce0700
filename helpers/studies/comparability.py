"""Whether the trials of a study can be ranked: one text, one context, one vocabulary, and a figure that they leave.

What is refused here would go wrong three times: in 'best so far', in what a search learns, and in what pruning stops.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.settings import NOTEBOOKS, DataSettings, SettingsError
from helpers.training.memory import read_shape

Fault = tuple[tuple, str]  # where in the file, and one sentence
_TEXT = DataSettings.model_fields.keys() - {"run", "model_name_or_path", "block_size"}
_MAKES_FIGURE = {"eval_loss": ("03", "04"), "bits_per_byte": ("04",), "perplexity": ("04",)}  # of the shipped ones


def ranking_faults(found: dict[str, Any]) -> Iterator[Fault]:
    """Find what a study varies and may not, because its figure would change with it for another reason."""
    vary = found.get("vary") if isinstance(found.get("vary"), dict) else {}
    figure = found.get("optimise", "eval_loss")
    figures = {figure, "eval_loss"} if found.get("prune") is True else {figure}
    for name, over in vary.items():
        if isinstance(over, dict) or (isinstance(over, list) and len(over) > 1):
            reason = _reason(name, over, figures)
            if reason:
                yield ("vary", name), f"{reason} {_way_out(name)}"


def _reason(name: str, over: Any, figures: set[str]) -> str:
    """Return why values of a setting cannot be ranked by figures; empty where they can."""
    if name in _TEXT:
        return f"{name} changes the text that is measured, and figures of different texts cannot be ranked."
    if name == "block_size" and "eval_loss" in figures:
        return (
            "block_size changes how much each token of the validation text has before it, so a longer block has the "
            "smaller loss without being better."
        )
    if name == "stride" and figures & {"bits_per_byte", "perplexity"}:
        return "stride changes how the figure is measured, not the model."
    if name == "model_name_or_path" and figures != {"bits_per_byte"} and _vocabularies(over) > 1:
        return (
            "model_name_or_path names models of different vocabularies, whose losses a token cannot be ranked; "
            "optimise: bits_per_byte, without prune, can."
        )
    return ""


def _way_out(name: str) -> str:
    return (
        f"Make a study for each value, with {name} under `settings`; `python -m helpers compare STUDY STUDY` lays them "
        "side by side."
    )


def _vocabularies(over: Any) -> int:
    """Return how many sizes of vocabulary the models have whose shapes are known here."""
    sizes = set()
    for name in over if isinstance(over, list) else ():
        try:
            sizes.add(read_shape(str(name)).vocab_size)
        except SettingsError:
            continue  # told elsewhere, or not known before its download
    return len(sizes)


def figure_faults(found: dict[str, Any], notebooks: Sequence[Path]) -> Iterator[Fault]:
    """Find a figure that none of the notebooks makes; what a notebook of the user's makes is not known."""
    figure = found.get("optimise", "eval_loss")
    makers = _MAKES_FIGURE.get(figure, ())
    shipped = [path.name[:2] for path in notebooks if path.parent.absolute() == NOTEBOOKS.absolute()]
    if makers and len(shipped) == len(notebooks) and not set(makers) & set(shipped):
        yield (
            ("optimise" if "optimise" in found else "notebooks",),
            f"None of the notebooks {', '.join(shipped)} makes {figure}, so that every trial would fail: add "
            f'"{makers[0]}" to `notebooks`.',
        )
