"""Run notebook 05 once: its failures really happen, `explain` knows them by their own words, and the fixes work."""

import json
import math
import sys

import psutil
import pytest

from helpers.settings import NOTEBOOKS
from helpers.troubleshooting import explain

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's memory or files")


def children():
    running = psutil.Process().children(recursive=True)
    running = [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    return {one.pid for one in running if "resource_tracker" not in " ".join(one.cmdline())}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Run every code cell in this process and return the names that they define; nothing must stay behind."""
    import matplotlib.pyplot as plt
    from IPython.core.interactiveshell import InteractiveShell

    cells = json.loads((NOTEBOOKS / "05_troubleshooting.ipynb").read_text(encoding="utf-8"))["cells"]
    folder, before = tmp_path_factory.mktemp("notebook"), children()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COURSE_RUNS", str(folder / "runs"))
        shell = InteractiveShell()
        for cell in cells:
            if cell["cell_type"] == "code":
                shell.run_cell("".join(cell["source"]), store_history=False).raise_error()
    plt.close("all")
    assert list(folder.iterdir()) == []
    assert children() == before
    return shell.user_ns


def known(symptom):
    return explain(symptom).causes[0].id


def test_an_empty_tokenizer_trains_to_a_loss_of_exactly_zero(notebook):
    assert len(notebook["empty"]) == 1
    assert [row["loss"] for row in notebook["empty_log"]] == [0, 0, 0]
    assert min(row["loss"] for row in notebook["fixed_log"]) > 1
    assert known(notebook["empty_log"]) == "D1"


def test_the_filter_hides_a_loss_that_is_nan(notebook):
    hidden, shown = notebook["logged"]
    assert hidden == [0, 0, 0]
    assert all(math.isnan(loss) for loss in shown)
    assert known(notebook["hidden"]) == known([{"loss": 0.0, "grad_norm": math.nan}]) == "T6"


def test_a_wild_learning_rate_diverges_and_a_sane_one_does_not(notebook):
    assert not math.isfinite(notebook["wild"][-1])
    assert all(math.isfinite(loss) for loss in notebook["sane"])


def test_weights_in_half_precision_diverge_and_autocast_does_not(notebook):
    first_bad = next(n for n, loss in enumerate(notebook["half"], 1) if not math.isfinite(loss))
    assert first_bad <= 6
    assert notebook["mixed"][-1] < notebook["mixed"][0]


def test_the_end_as_padding_is_never_learnt(notebook):
    assert (notebook["n_broken"], notebook["n_fixed"]) == (0, 6)
    assert "<|endoftext|>" not in notebook["endless"]


def test_memorising_shows_in_the_held_out_loss(notebook):
    assert notebook["best"]["eval_loss"] < notebook["history"][-1]["eval_loss"]
    assert "eval_loss rose" in explain(notebook["history"]).causes[0].evidence[0]


def test_greedy_decoding_goes_in_circles_and_sampling_does_not(notebook):
    greedy, sampled = notebook["circles"]
    assert greedy > 0.5 > 0.2 > sampled


def test_labels_shifted_twice_teach_the_token_after_the_next(notebook):
    assert list(notebook["shifted"].values()) == pytest.approx([0, 1], abs=0.1)
    assert list(notebook["straight"].values()) == pytest.approx([1, 0], abs=0.1)


@needs_limits
def test_memory_runs_out_and_smaller_passes_fit_for_the_same_step(notebook):
    assert "can't allocate memory" in notebook["at_once"]
    assert notebook["in_passes"] == "passed"
    assert known(notebook["at_once"]) == "T1"


def test_a_displayed_model_outlives_del_and_not_xdel(notebook):
    assert list(notebook["alive"].values()) == ["True", "True", "False"]


def test_a_traceback_keeps_what_a_failed_cell_held(notebook):
    assert (notebook["failed"][3], notebook["failed"][5], notebook["caught"][-1]) == ("True", "False", "False")


def test_an_index_is_out_of_range_in_three_ways(notebook):
    assert set(notebook["ranges"].values()) == {("IndexError: index out of range in self", "accepted")}
    assert known("IndexError: index out of range in self") == "T12"


def test_each_old_line_is_refused_and_known_and_its_modern_line_accepted(notebook):
    rows = notebook["script"]
    assert len(rows) == 11
    assert {row["then"] for row in rows} == {"accepted"}
    assert {known(row["today"]) for row in rows} == {"D6", "D7", "D8", "D10", "D11", "D12", "D13", "D18"}


def test_the_migrated_script_trains(notebook):
    assert notebook["migrated"][-1] < notebook["migrated"][0] - 0.5


def test_a_data_set_that_is_a_script_is_refused_and_text_and_parquet_load(notebook):
    script, bare_name = notebook["files"]["a script"], notebook["files"]["a bare name"]
    assert "Dataset scripts are no longer supported" in script[0]
    assert "needs its owner" in bare_name[0]
    assert (script[1], bare_name[1]) == ("Parquet: 3 documents", "'mine.txt': 3 documents")
    assert known(script[0]) == "D2"


def test_tied_weights_are_saved_and_loaded_with_equal_logits(notebook):
    saving, loading = notebook["files"]["saving"], notebook["files"]["loading"]
    assert (known(saving[0]), known(loading[0])) == ("D16", "D17")
    assert loading[1] == "from_pretrained: equal logits True"


def test_only_the_correct_resume_has_the_rates_and_losses_of_the_run(notebook):
    rates, losses = notebook["uninterrupted"]
    assert notebook["resumed"][0] == rates
    assert notebook["resumed"][1] == pytest.approx(losses, abs=1e-4)
    assert notebook["longer"][0] != rates
    assert notebook["restarted"][0][0] == 1e-3


def test_a_checkpoint_that_is_cut_short_is_known_and_passed_over(notebook):
    assert known(notebook["cut_short"]) == "T17"
    assert notebook["fallback"] == "checkpoint-4"


def test_a_spawned_worker_needs_a_module(notebook):
    assert "exited unexpectedly" in notebook["in_cell"].last_line
    assert "Can't get attribute" in notebook["in_cell"].output
    assert notebook["in_module"].last_line == "passed: 4 rows"
    assert known(notebook["in_cell"].output) == known(notebook["in_cell"].last_line) == "T18"


@needs_limits
def test_each_runner_fails_with_a_known_error_and_is_fixed(notebook):
    runners = notebook["runners"]
    assert [known(broken) for broken, _ in runners.values()] == ["T23", "T20", "T25", "T24", "T17"]
    assert [fixed for _, fixed in runners.values()] == ["2", "499500", "'passed'", "5 epochs", "written"]
    assert runners["epochs=5"][0].startswith("2 epochs")


def test_the_practice_run_has_nothing_wrong(notebook):
    assert {check.status for check in notebook["examination"].checks} == {"ok"}
