"""What the reproductions share: the result they return, a tiny model, a short training, a kernel of one's own."""

import copy
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from helpers.display import html_table
from helpers.troubleshooting.reading import clean

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

_SECONDS_A_CELL = 30
_LONGEST_VALUE = 160


@dataclass(frozen=True)
class Reproduced:
    """A failure that was made to happen, and what it was after the mend.

    Attributes:
        failure: its name.
        symptom: what one sees, in the words of the library where it has any.
        broken: what was measured while it was broken.
        mended: the same measurements after the mend.
        sign: the id under which `explain` knows it.
    """

    failure: str
    symptom: str
    broken: Mapping[str, Any] = field(default_factory=dict)
    mended: Mapping[str, Any] = field(default_factory=dict)
    sign: str = ""

    def __str__(self) -> str:
        """Return it in a few lines of plain text."""
        lines = [f"{self.failure} ({self.sign})", f"  seen:   {clean(self.symptom)}"]
        for name in dict.fromkeys([*self.broken, *self.mended]):
            lines.append(f"  {name}: {_shown(self.broken.get(name))} -> {_shown(self.mended.get(name))}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        names = dict.fromkeys([*self.broken, *self.mended])
        rows = ((name, _shown(self.broken.get(name)), _shown(self.mended.get(name))) for name in names)
        return (
            f"<p><b>{escape(self.failure)}</b> ({escape(self.sign)}): <q>{escape(clean(self.symptom))}</q></p>"
            f"{html_table(('measured', 'broken', 'mended'), rows)}"
        )


class Rows(list):
    """Rows of one shape, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return html_table(list(self[0]), ([_shown(value) for value in row.values()] for row in self))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    text = "" if value is None else clean(str(value))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "\u2026"


def tiny_model(*, vocabulary: int = 4096, positions: int = 64, seed: int = 0) -> "GPT2LMHeadModel":
    """Return a GPT-2 of two layers with random weights: a training of it takes a second."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    end = vocabulary - 1
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=64, n_layer=2, n_head=2, eos_token_id=end, bos_token_id=end
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"
    return model


def train_briefly(
    model: "GPT2LMHeadModel",
    rows: "Sequence[Mapping[str, Any]]",
    *,
    collate: Any = None,
    resume_from: Any = None,
    folder: Any = None,
    optimizer: Any = None,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Train with the transformers Trainer on the CPU and return its log, one row a step; nothing stays on the disk.

    Args:
        model: trained in place.
        rows: each with `input_ids` and what else `collate` needs.
        collate: makes a batch of rows; left out, labels are the tokens.
        resume_from: a checkpoint's folder.
        folder: where checkpoints go; left out, none is written.
        optimizer: in place of the Trainer's own.
        arguments: of `TrainingArguments`.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from helpers.model import quiet
    from helpers.training.fine_tuning import as_batch

    with tempfile.TemporaryDirectory() as scratch, quiet():
        defaults = {"save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"}
        made = TrainingArguments(
            output_dir=str(folder or scratch),
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **defaults | arguments,
        )
        trainer = Trainer(
            model=model,
            args=made,
            train_dataset=list(rows),
            data_collator=collate or as_batch,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
        return [copy.copy(row) for row in trainer.state.log_history if "loss" in row]


def run_cells(cells: Sequence[str], *, parameters_tag: bool = False, **options: Any) -> list[str]:
    """Run cells in a kernel of their own, which ends with them; return what each printed, showed or raised.

    Args:
        cells: their source.
        parameters_tag: tag the first one `parameters`.
        options: of `nbclient.NotebookClient`, such as `timeout` in seconds a cell, or `kernel_name`.

    Raises:
        Exception: whatever nbclient raises of a kernel that is not there, dies or takes too long.
    """
    from nbclient import NotebookClient

    notebook = notebook_of(cells, parameters_tag=parameters_tag)
    client = NotebookClient(
        notebook,
        **{"kernel_name": "python3", "timeout": _SECONDS_A_CELL, "allow_errors": True} | options,
        kernel_manager_class=own_kernel(),
        extra_arguments=["--IPKernelApp.log_level=50"],
        log=_quiet_log(),
    )
    client.execute()
    return ["\n".join(map(_text, cell.outputs)) for cell in notebook.cells]


def notebook_of(cells: Sequence[str], *, parameters_tag: bool = False) -> Any:
    """Return a notebook of these cells."""
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    if parameters_tag:
        notebook.cells[0].metadata["tags"] = ["parameters"]
    return notebook


def own_kernel() -> type:
    """Return a class of managers that start this very Python as `python3`, whatever kernels are installed elsewhere."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **traits: Any) -> None:
            super().__init__(**{"kernel_spec_manager": KernelSpecManager(kernel_dirs=[]), "log": _quiet_log()} | traits)

    return OwnKernel


def _quiet_log() -> logging.Logger:
    """Return a log that says nothing: what a failure made on purpose says is what it raises."""
    log = logging.getLogger("helpers.troubleshooting.run_cells")
    log.setLevel(logging.CRITICAL + 1)
    return log


def _text(output: Any) -> str:
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return output.get("text") or output.get("data", {}).get("text/plain", "")
