"""The laboratory of notebook 05: make a failure happen safely, and show what was measured before and after its fix."""

import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.course import kernel_of_this_python, without_address_grammar
from helpers.display import PlainTextMixin, cut, html_table
from helpers.troubleshooting.reading import clean

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

_SECONDS_PER_CELL, _CHILD_SECONDS = 30, 300
_LONGEST_VALUE = 160
# A kernel listens on this machine only; its warning about that would be printed between the results.
_KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=50"]


class Table(PlainTextMixin, list):
    """Rows with the same columns, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return html_table(list(self[0]), ([_shown(value) for value in row.values()] for row in self))


def show_fix(measurements: Mapping[str, tuple[Any, Any]]) -> Table:
    """Return a table of what was measured while something was broken, and after the fix.

    >>> show_fix({"loss": (0.0, 8.25)})
    [{'measured': 'loss', 'broken': 0.0, 'fixed': 8.25}]
    """
    return Table({"measured": name, "broken": broken, "fixed": fixed} for name, (broken, fixed) in measurements.items())


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "" if value is None else cut(clean(str(value)), _LONGEST_VALUE)


def error_of(action: Callable[[], Any]) -> str:
    """Call a function and return its error as `Type: first line`, or 'accepted' where there is none.

    >>> error_of(lambda: [][3])
    'IndexError: list index out of range'
    """
    from helpers.model import quiet

    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        try:
            action()
        except Exception as error:  # noqa: BLE001 (which error it is, is the question)
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return "accepted"


def tiny_model(*, positions: int = 64, seed: int = 0) -> "GPT2LMHeadModel":
    """Return a GPT-2 with two layers, random weights and the pocket model's vocabulary, which trains in a second."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from helpers.training import read_shape

    n_tokens = read_shape("pocket").vocab_size
    ends = {"bos_token_id": n_tokens - 1, "eos_token_id": n_tokens - 1}
    config = GPT2Config(vocab_size=n_tokens, n_positions=positions, n_embd=64, n_layer=2, n_head=2, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # without it transformers warns that it guesses the type from the class's name
    return model


def train_briefly(
    model: "GPT2LMHeadModel",
    rows: "Sequence[Mapping[str, Any]]",
    *,
    collate: Any = None,
    resume_from: Path | None = None,
    folder: Path | None = None,
    optimizer: Any = None,
    **arguments: Any,
) -> list[dict[str, Any]]:
    """Train with the transformers Trainer on the CPU and return its log, one row per step.

    Args:
        model: trained in place.
        rows: each with `input_ids` and whatever else `collate` needs.
        collate: makes a batch of rows; left out, labels are the tokens.
        resume_from: a checkpoint's folder.
        folder: for checkpoints; left out, nothing stays on the disk.
        optimizer: instead of the Trainer's own.
        arguments: of `TrainingArguments`.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from helpers.model import quiet
    from helpers.training import as_batch

    with tempfile.TemporaryDirectory() as scratch, quiet():
        defaults = {"save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"}
        training_arguments = TrainingArguments(
            output_dir=str(folder or scratch),
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **defaults | arguments,
        )
        trainer = Trainer(
            model=model,
            args=training_arguments,
            train_dataset=list(rows),
            data_collator=collate or as_batch,
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)  # it would print every row of the log
        trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
        return [row for row in trainer.state.log_history if "loss" in row]


@dataclass(frozen=True)
class ChildResult:
    """How a child process ended: its return code and everything it printed."""

    returncode: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line printed; of a traceback, the error."""
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""


def run_in_child(source: str, *, setup: str = "", extra_bytes: int | None = None) -> ChildResult:
    """Run Python source in a child process, with torch imported, under a limit on its memory.

    Args:
        source: Python code; it can use `torch`.
        setup: Python code that runs before the limit is set.
        extra_bytes: address space that the child may take beyond what it has after `setup`; Windows has no such limit.

    Raises:
        subprocess.TimeoutExpired: the child took too long.
    """
    # one thread: each further one reserves address space of its own, which would count towards the limit
    lines = ["import torch", "torch.set_num_threads(1)", setup]
    if extra_bytes is not None and sys.platform != "win32":
        lines += ["import psutil, resource", f"cap = psutil.Process().memory_info().vms + {extra_bytes}"]
        lines += ["resource.setrlimit(resource.RLIMIT_AS, (cap, cap))"]
    # not helpers.environment's child, which passes facts: here the child's own words are what is looked at
    child = subprocess.run(  # noqa: S603 (the caller's own code, run on purpose)
        [sys.executable, "-c", "\n".join([*lines, source])],
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    return ChildResult(child.returncode, child.stdout + child.stderr)


def run_cells(cells: Sequence[str], **options: Any) -> list[str]:
    """Run cells in a new kernel, which ends with them; return what each of them printed, showed or raised.

    `options` are those of `nbclient.NotebookClient`, such as `timeout` in seconds per cell, or `kernel_name`; a kernel
    that does not exist, dies or takes too long is an error of nbclient's.
    """
    with without_address_grammar():
        import nbformat
        from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    defaults = {"kernel_name": "python3", "timeout": _SECONDS_PER_CELL, "allow_errors": True}
    client = NotebookClient(
        notebook,
        **defaults | options,
        kernel_manager_class=kernel_of_this_python(),
        extra_arguments=_KERNEL_ARGUMENTS,
    )
    before = logging.root.manager.disable
    logging.disable()  # a failure made on purpose is no news
    try:
        client.execute()
    finally:
        logging.disable(before)
    return ["\n".join(map(_text, cell.outputs)) for cell in notebook.cells]


def _text(output: Any) -> str:
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return output.get("text") or output.get("data", {}).get("text/plain", "")
