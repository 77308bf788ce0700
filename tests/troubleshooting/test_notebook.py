"""Run notebook 05 once: its failures really happen, `explain` recognises their messages, and the fixes work."""

import json
import math
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from helpers.files import environment_variables, write_atomically
from helpers.paths import NOTEBOOKS
from helpers.settings import TrainingSettings
from helpers.training.shape import operations_per_token, read_shape
from helpers.troubleshooting import explain

NOTEBOOK = NOTEBOOKS / "05_troubleshooting.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
# The values that the tests below use; all but `answers`, `direct` and `left` are names in the notebook.
KEPT = """
empty empty_log fixed_log wild half mixed endless ended hidden shifted straight printed still_there new_token past_end
too_long errors outcome script losses uninterrupted resumed longer restarted cut_short fallback killed again logs
study table between difference shape trained F mfu examination perplexity answers direct left
""".split()

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's memory or files")


def children():
    running = psutil.Process().children(recursive=True)
    running = [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return {one.pid for one in running if "resource_tracker" not in " ".join(one.cmdline())}


def source_of(cell_id):
    return next("".join(cell["source"]) for cell in CELLS if cell["id"] == cell_id)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, trained_runs):
    """Run every cell in a kernel, then the examination of a finished run; return the values of the cells."""
    folder, kept, before = tmp_path_factory.mktemp("notebook"), tmp_path_factory.mktemp("kept"), children()
    keep = "import pickle; pickle.dump({{name: globals()[name] for name in {!r}}}, open({!r}, 'wb'))"
    further = [
        "ids = torch.tensor(parts['test']['input_ids']); trainer.model.eval()",
        "with torch.no_grad(): direct = trainer.model(ids, labels=ids).loss.exp().item()",
        "import psutil; left = [one.cmdline() for one in psutil.Process().children() if one.status() != 'zombie']",
        keep.format(KEPT, str(kept / "made")),
        "run, has_run = 'tiny', True",
        *map(source_of, ("05-mfu-1", "05-mfu-3", "05-49")),
        keep.format(["examined", "trained", "examination"], str(kept / "finished")),
    ]
    runs = sorted(trained_runs.iterdir())
    done = nbformat.read(NOTEBOOK, as_version=4)
    n_cells, first_exercise = len(done.cells), [cell.id for cell in done.cells].index("05-55")
    done.cells += map(nbformat.v4.new_code_cell, further)
    done.cells.insert(first_exercise, nbformat.v4.new_code_cell("answers = run_folder(run)"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(trained_runs))
        NotebookClient(done, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert list(folder.iterdir()) == []
    assert sorted(trained_runs.iterdir()) == runs
    assert children() == before
    del done.cells[first_exercise]
    printed = [output for cell in done.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert printed == [], "no warning is shown"
    if finished := os.environ.get("FINISHED"):  # for the browser tests, which show it
        del done.cells[n_cells:]
        write_atomically(Path(finished) / "notebooks" / NOTEBOOK.name, nbformat.writes(done))
    made, of_finished_run = (pickle.loads((kept / name).read_bytes()) for name in ("made", "finished"))
    assert [command for command in made["left"] if "resource_tracker" not in " ".join(command)] == []
    assert made["answers"] == trained_runs / "pocket", "the run's own folder, not one that the notebook deletes"
    return made | {"of_finished_run": of_finished_run}


def first_cause(symptom):
    return explain(symptom).causes[0].id


def test_an_empty_tokenizer_trains_to_a_loss_of_exactly_zero(notebook):
    assert len(notebook["empty"]) == 1
    assert [row["loss"] for row in notebook["empty_log"]] == [0, 0, 0]
    assert min(row["loss"] for row in notebook["fixed_log"]) > 1
    assert first_cause(notebook["empty_log"]) == "D1"


def test_a_learning_rate_that_is_too_high_diverges(notebook):
    assert not math.isfinite(notebook["wild"][-1])


def test_weights_in_half_precision_diverge_and_autocast_does_not(notebook):
    first_bad = next(n for n, loss in enumerate(notebook["half"], 1) if not math.isfinite(loss))
    assert first_bad <= 6
    assert notebook["mixed"][-1] < notebook["mixed"][0]


def test_an_end_of_text_used_as_padding_is_never_learned(notebook):
    assert "<|endoftext|>" not in notebook["endless"]
    assert notebook["ended"] == "The fox went home.<|endoftext|>"


def test_the_nan_filter_hides_a_nan_loss(notebook):
    assert [row["loss"] for row in notebook["hidden"]] == [0, 0, 0]
    assert first_cause(notebook["hidden"]) == first_cause([{"loss": 0.0, "grad_norm": math.nan}]) == "T6"


def test_labels_shifted_twice_teach_the_token_after_the_next(notebook):
    assert notebook["shifted"][1] == [2, 3, 4, 5, 6, 7, 0, 1]
    assert notebook["straight"][1] == [1, 2, 3, 4, 5, 6, 7, 0]


@needs_limits
def test_memory_runs_out_and_smaller_passes_fit_for_the_same_step(notebook):
    assert notebook["printed"][0] == "4 passes of 4 rows: passed"
    assert "can't allocate memory" in notebook["printed"][-1]
    assert first_cause(notebook["printed"][-1]) == "T1"


def test_displayed_and_failed_objects_stay_in_memory_until_released(notebook):
    assert list(notebook["still_there"].values()) == ["True", "False", "True", "False"]


def test_an_index_is_out_of_range_in_three_ways(notebook):
    assert notebook["new_token"] == notebook["past_end"] == notebook["too_long"]
    assert first_cause(notebook["new_token"]) == "T12"


def test_every_old_line_of_the_script_fails_with_a_known_error_and_the_repaired_script_runs(notebook):
    assert set(map(first_cause, notebook["errors"])) == {"D2", "D7", "D8", "D12", "D13", "D17"}
    assert notebook["outcome"] == "accepted"


def test_the_corrected_scripts_perplexity_counts_only_predicted_tokens(notebook):
    assert notebook["perplexity"] == pytest.approx(notebook["direct"], rel=1e-3)


def test_every_changed_line_of_the_corrected_script_is_marked(notebook):
    before = {line.partition("#")[0].strip() for line in notebook["script"].splitlines()}
    changed = [
        line
        for line in source_of("05-37").splitlines()
        if line.strip() and line.partition("#")[0].strip() not in before
    ]
    assert len(changed) > 20
    assert [line for line in changed if not line.partition("  # ")[2].startswith(("new", "changed"))] == []


def test_the_corrected_script_trains(notebook):
    assert notebook["losses"][-1] < notebook["losses"][0] - 0.1


def test_only_the_correct_resume_has_the_rates_and_losses_of_the_run(notebook):
    rates, losses, at_twice = (
        [row[name] for row in notebook[run]]
        for run, name in [("uninterrupted", "learning_rate"), ("uninterrupted", "loss"), ("longer", "learning_rate")]
    )
    assert [row["learning_rate"] for row in notebook["resumed"]] == rates
    assert [row["loss"] for row in notebook["resumed"]] == pytest.approx(losses, abs=1e-4)
    assert at_twice[0] == rates[0] < at_twice[1] > at_twice[2], "it rises, then falls more slowly"
    assert notebook["restarted"][0]["learning_rate"] == 1e-3
    assert notebook["restarted"][0]["loss"] < losses[0] - 0.1, "these rows were seen before"


def test_a_truncated_checkpoint_is_recognised_and_skipped(notebook):
    assert first_cause(notebook["cut_short"]) == "T17"
    assert notebook["fallback"] == "checkpoint-4"


def test_a_notebook_whose_kernel_died_resumes_when_it_is_run_again(notebook):
    assert first_cause(notebook["killed"]) == "T20"
    assert notebook["again"] == "steps 5 to 6\n"


def test_a_parameter_without_a_tagged_cell_has_no_effect_and_no_error(notebook):
    assert notebook["logs"] == {"untagged": ["Passed unknown parameter: epochs", "2 epochs"], "tagged": ["5 epochs"]}
    assert first_cause("\n".join(notebook["logs"]["untagged"])) == "T24"


def test_the_study_ends_in_a_table_with_the_best_run_first(notebook):
    runs = notebook["table"].runs
    assert notebook["study"].returncode == 0
    assert sorted(run.settings["learning_rate"] for run in runs) == [1e-4, 1e-3, 1e-2]
    losses = [run.eval_loss for run in runs]
    assert losses == sorted(losses)


@pytest.mark.skipif(sys.platform == "win32", reason="starts processes as POSIX systems do")
def test_two_processes_give_the_weights_of_one(notebook):
    assert notebook["between"] == 0
    assert notebook["difference"] < 1e-5


def test_mfu_counts_the_same_operations_as_a_plan(notebook):
    planned = operations_per_token(notebook["shape"], notebook["trained"].block_size)
    assert notebook["F"] == pytest.approx(planned, rel=0.02), "biases and norms are left out"
    assert notebook["mfu"] > 0  # its value depends on the machine


def test_with_lora_mfu_counts_the_same_operations_as_a_plan():
    settings = TrainingSettings(lora_r=8)
    run = SimpleNamespace(facts={"tokens": 1, "seconds": 1}, model_folder="pocket")
    names = {
        "has_run": True, "run": "mine", "environment_variables": environment_variables,
        "open_run": lambda name: run, "read_run_settings": lambda name: settings, "read_shape": read_shape,
    }  # fmt: skip
    exec(source_of("05-mfu-1"), names)
    planned = operations_per_token(names["shape"], settings.block_size, settings)
    assert names["F"] == pytest.approx(planned, rel=0.1), "the operations of the adapter itself are left out"


def test_a_run_that_learns_passes_the_examination(notebook):
    assert {check.status for check in notebook["examination"].checks} == {"ok"}


def test_a_finished_run_is_examined_instead_of_one_that_the_notebook_trained(notebook, tiny_settings):
    finished = notebook["of_finished_run"]
    assert (finished["examined"], finished["trained"]) == ("tiny", tiny_settings)
    assert finished["examination"].run == "tiny"
