"""The laboratory of notebook 05: make failures happen safely, and measure what its lessons compare."""

import contextlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from helpers.course import hide_uri_grammar, this_python_kernel_manager
from helpers.troubleshooting.reading import clean

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from transformers import GPT2LMHeadModel

_SECONDS_PER_CELL, _CHILD_SECONDS = 30, 300
# A kernel warns that it listens on this machine only, which would be printed between the results.
_KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=50"]


def error_of(action: Callable[[], Any]) -> str:
    """Call a function, hide what it prints, and return its error as `Type: first line`; 'accepted' if there is none.

    >>> error_of(lambda: [][3])
    'IndexError: list index out of range'
    """
    from helpers.model import quiet

    with warnings.catch_warnings(action="ignore"), quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            action()
        except Exception as error:  # noqa: BLE001 (the question is which error it is)
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {clean(lines[0]) if lines else ''}"
    return "accepted"


def tiny_model(*, positions: int = 64, seed: int = 0) -> "GPT2LMHeadModel":
    """Return a GPT-2 that trains in a second: two layers, random weights, and the pocket model's vocabulary size."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from helpers.training import read_shape

    n_tokens = read_shape("pocket").vocab_size
    special_ids = {"bos_token_id": n_tokens - 1, "eos_token_id": n_tokens - 1}
    config = GPT2Config(vocab_size=n_tokens, n_positions=positions, n_embd=64, n_layer=2, n_head=2, **special_ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # without it transformers guesses it from the class name, and warns
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
        collate: makes a batch of rows; by default the labels are the tokens.
        resume_from: a checkpoint's folder.
        folder: for checkpoints; by default nothing stays on the disk.
        optimizer: used instead of the Trainer's own.
        arguments: arguments of `TrainingArguments`.
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


@contextlib.contextmanager
def script_folder(folder: Path) -> Iterator[None]:
    """Work in a folder that has everything the 2023 script loads, with the libraries' progress bars hidden.

    `gpt2` and `openai-community/gpt2` are tiny models with the pocket model's tokenizer, `bookcorpus` is a data set in
    the form of a Python script, and `fables.parquet` has eight texts.
    """
    import datasets

    from helpers.data import load_documents
    from helpers.model import load_tokenizer, quiet
    from helpers.settings import DataSettings

    (folder / "bookcorpus").mkdir(parents=True, exist_ok=True)  # a learner may run the cell again
    (folder / "bookcorpus" / "bookcorpus.py").write_text("import datasets\n", encoding="utf-8")
    own_cache = patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "cache")  # so that nothing stays
    with quiet(), contextlib.chdir(folder), own_cache:
        load_documents(DataSettings())["train"].select(range(8)).to_parquet("fables.parquet")
        for name in ("gpt2", "openai-community/gpt2"):
            tiny_model(positions=1024).save_pretrained(name)
            load_tokenizer("pocket").save_pretrained(name)
        yield


def measure_product(precision: str) -> float:
    """Return the operations per second of a matrix product here; `precision` is 'bf16', 'fp16' or 'float32'."""
    import torch

    from helpers.model import device

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]
    speeds = []  # large products fill the hardware; small ones fit in between other programs' time slices
    for size, repeat in ((256, 500), (8192, 5) if torch.cuda.is_available() else (1024, 10)):
        matrix = torch.randn(size, size, device=device()).to(dtype)
        product = "(matrix @ matrix)[0, 0].item()"  # `item` waits for the GPU
        seconds = timeit.repeat(product, globals={"matrix": matrix}, number=1, repeat=repeat)
        speeds.append(2 * size**3 / min(seconds))
    return max(speeds)


def run_in_child(source: str, *, setup: str = "", extra_bytes: int | None = None) -> list[str]:
    """Run Python source in a child process with torch imported; return the lines it prints, those about an error last.

    Args:
        source: Python code; it can use `torch`.
        setup: Python code that runs before the limit is set.
        extra_bytes: address space that the child may use beyond what it has after `setup`; ignored on Windows.

    Raises:
        subprocess.TimeoutExpired: the child took too long.
    """
    # one thread: each further thread reserves its own address space, which counts towards the limit
    lines = ["import torch", "torch.set_num_threads(1)", setup]
    if extra_bytes is not None and sys.platform != "win32":
        lines += ["import psutil, resource", f"cap = psutil.Process().memory_info().vms + {extra_bytes}"]
        lines += ["resource.setrlimit(resource.RLIMIT_AS, (cap, cap))"]
    # not helpers.environment's child, which passes facts: here we need everything that the child prints
    child = subprocess.run(  # noqa: S603 (the caller's own code, run on purpose)
        [sys.executable, "-c", "\n".join([*lines, source])],
        capture_output=True,
        text=True,
        timeout=_CHILD_SECONDS,
        check=False,
    )
    return (child.stdout + child.stderr).splitlines()


def write_notebook(path: Path, cells: Sequence[str], *, tags: Sequence[str] = ()) -> None:
    """Write code cells as a notebook; `tags` are those of its first cell."""
    notebook = _notebook(cells)
    notebook.cells[0].metadata["tags"] = list(tags)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def _notebook(cells: Sequence[str]) -> "NotebookNode":
    hide_uri_grammar()
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def run_cells(cells: Sequence[str], **options: Any) -> list[str]:
    """Run cells in a new kernel, which ends afterwards; return what each of them printed, displayed or raised.

    `options` are those of `nbclient.NotebookClient`, such as `timeout` in seconds per cell, or `kernel_name`. If a
    kernel does not exist, dies or takes too long, nbclient raises its own error.
    """
    hide_uri_grammar()
    from nbclient import NotebookClient

    notebook = _notebook(cells)
    defaults = {"kernel_name": "python3", "timeout": _SECONDS_PER_CELL, "allow_errors": True}
    client = NotebookClient(
        notebook,
        **defaults | options,
        kernel_manager_class=this_python_kernel_manager(),
        extra_arguments=_KERNEL_ARGUMENTS,
    )
    before = logging.root.manager.disable
    logging.disable()  # the failures are intended
    try:
        with warnings.catch_warnings():  # on Windows pyzmq starts another thread for the event loop, and warns
            warnings.filterwarnings("ignore", "Proactor event loop", RuntimeWarning)
            client.execute()
    finally:
        logging.disable(before)
    return ["\n".join(map(_text, cell.outputs)) for cell in notebook.cells]


def _text(output: Any) -> str:
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return output.get("text") or output.get("data", {}).get("text/plain", "")
