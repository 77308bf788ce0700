"""Processes that start with the training libraries imported: a new Python takes 8 s of processor time for that."""

import multiprocessing
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

_GPT2 = "transformers.models.gpt2.modeling_gpt2"
_PRELOADED = ["helpers.__main__", "helpers.training.fine_tuning", "transformers.trainer", _GPT2, "datasets"]


def start_forked(function, *arguments, output, **env):
    """Start a function in a fork of a process that has only imported; its output goes to the file `output`.

    It has this process's environment, with the changes in `env`, and its number of threads, because another number
    gives other last bits. On Windows, which cannot fork, it imports again.
    """
    import torch

    is_windows = sys.platform == "win32"
    forks = multiprocessing.get_context("spawn" if is_windows else "forkserver")
    if not is_windows:
        forks.set_forkserver_preload(_PRELOADED)
    given = (function, arguments, str(output), {**os.environ, **env}, torch.get_num_threads())
    process = forks.Process(target=_run, args=given, daemon=True)  # it ends with this one
    process.start()
    return process


def _run(function, arguments, output, env, n_threads):
    import torch

    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(n_threads)
    with Path(output).open("w", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        function(*arguments)


def train_forked(settings, runs, **env):
    """Start the command `train` with these settings; its output is next to the runs."""
    values = [part for name, value in settings.model_dump().items() for part in ("-p", name, str(value))]
    output = runs.with_name(f"train-{env.get('RANK', '')}.txt")
    return start_forked(call_command, "train", *values, output=output, COURSE_RUNS=str(runs), **env)


def call_command(*arguments):
    """Call the command line."""
    from helpers.__main__ import main

    main(arguments, prog_name="helpers")
