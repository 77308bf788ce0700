"""The laboratory: child processes with limits, kernels that end, a script's folder, the speed of a matrix product."""

import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import nbformat
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.troubleshooting import error_of, measure_product, run_cells, run_in_child, script_folder, write_notebook

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's memory or files")


SETUP = "x = torch.zeros(2**25)"  # 128 MiB, which the lower limit alone would not allow
SOURCE = "print(len(x))\ny = torch.zeros(2**26)\nprint('passed')\nraise ValueError('broken')"  # 256 MiB


def test_a_child_returns_its_output_with_its_error_last():
    lines = run_in_child(SOURCE, setup=SETUP, extra_bytes=2**30)
    assert (*lines[:2], lines[-1]) == (str(2**25), "passed", "ValueError: broken")


@needs_limits
def test_memory_really_runs_out_at_the_limit_which_counts_from_the_setup():
    limited = run_in_child(SOURCE, setup=SETUP, extra_bytes=2**26)
    assert limited[0] == str(2**25)
    assert "can't allocate memory" in limited[-1]


def test_a_hanging_child_is_stopped(monkeypatch):
    monkeypatch.setattr("helpers.troubleshooting.lab._CHILD_SECONDS", 1)
    with pytest.raises(subprocess.TimeoutExpired):
        run_in_child("import time; time.sleep(60)")


def test_run_cells_returns_output_and_errors_without_importing_the_slow_grammar():
    source = (
        "import sys; from helpers.troubleshooting import run_cells\n"
        """print(run_cells(["print('a')", "1 + 1", "1 / 0"]), sys.modules.get('rfc3987_syntax'))"""
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert child.stdout == "['a\\n', '2', 'ZeroDivisionError: division by zero'] None\n", child.stderr


def test_run_cells_hides_the_event_loop_warning_of_windows(monkeypatch):
    def execute(client):  # as in a kernel on Windows, where the loop is asyncio's usual one
        warnings.warn("Proactor event loop does not implement add_reader family of methods", RuntimeWarning, 2)

    monkeypatch.setattr("nbclient.NotebookClient.execute", execute)
    assert run_cells(["1 + 1"]) == [""]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
def test_measure_product_returns_the_fastest_of_small_and_large_products(monkeypatch, precision):
    seconds = {256: [9.0, 0.5], (large := 8192 if torch.cuda.is_available() else 1024): [2.0, 1.0]}
    dtypes = []

    def repeat(product, *, globals, number, repeat):
        dtypes.append(globals["matrix"].dtype)
        return seconds[len(globals["matrix"])]

    monkeypatch.setattr("timeit.repeat", repeat)
    assert measure_product(precision) == 2 * large**3 / 1.0
    assert set(dtypes) == {{"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]}


def test_the_script_of_2023_finds_its_files_and_the_folder_is_restored(tmp_path, capfd):
    before, cache = Path.cwd(), datasets.config.HF_DATASETS_CACHE
    with script_folder(tmp_path / "script"):
        names = sorted(path.name for path in Path().iterdir())
        assert names == ["bookcorpus", "fables.parquet", "gpt2", "openai-community"]
        assert len(datasets.load_dataset("parquet", data_files="fables.parquet", split="train")) == 8
        for name in ("gpt2", "openai-community/gpt2"):
            n_tokens = AutoModelForCausalLM.from_pretrained(name).config.vocab_size
            assert len(AutoTokenizer.from_pretrained(name)) == n_tokens
        assert "no longer supported" in error_of(lambda: datasets.load_dataset("bookcorpus"))
    assert (Path.cwd(), datasets.config.HF_DATASETS_CACHE) == (before, cache)
    assert capfd.readouterr() == ("", "")


def test_the_output_of_a_failing_call_is_hidden(capfd):
    assert error_of(lambda: [print("a table of losses"), 1 / 0]) == "ZeroDivisionError: division by zero"
    assert capfd.readouterr() == ("", "")


def test_the_first_cell_of_a_written_notebook_has_the_tags(tmp_path):
    write_notebook(tmp_path / "a.ipynb", ["epochs = 2", "print(epochs)"], tags=["parameters"])
    notebook = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == ["epochs = 2", "print(epochs)"]
    assert [cell.metadata.get("tags") for cell in notebook.cells] == [["parameters"], None]
