"""The fifteen failures really happen, are known to `explain` by their own words, and are really mended."""

import math
import sys
from itertools import pairwise

import psutil
import pytest

from helpers.troubleshooting import broken_run, cases, explain
from helpers.troubleshooting.learning_cases import repeated_share
from helpers.troubleshooting.reproduced import Rows

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a process's memory or files")


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    """Fail a test that leaves a process or a file."""
    monkeypatch.chdir(tmp_path)
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [one for one in set(psutil.Process().children(recursive=True)) - before if one.is_running()]
    left = [
        one
        for one in left
        if one.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(one.cmdline())
    ]
    assert left == []
    assert list(tmp_path.iterdir()) == []


def known(symptom):
    return explain(symptom).causes[0].id


def test_1_an_empty_tokenizer_trains_to_a_loss_of_exactly_zero():
    case = cases.empty_tokenizer()
    assert case.broken["losses"] == [0, 0, 0]
    assert case.broken["tokens in the vocabulary"] == 1
    assert min(case.mended["losses"]) > 1
    assert known(case.symptom) == case.sign == "D1"


def test_2_the_filter_hides_a_loss_that_is_no_number():
    case = cases.hidden_nan()
    assert case.broken["logged loss"] == [0, 0, 0]
    assert all(math.isnan(loss) for loss in case.mended["logged loss"])
    assert not math.isfinite(case.broken["learning rate 1e6"][-1])
    assert all(math.isfinite(loss) for loss in case.mended["learning rate 1e6"])
    assert known([{"loss": 0.0, "grad_norm": math.nan}]) == case.sign


def test_3_weights_in_half_precision_diverge_and_autocast_does_not():
    case = cases.pure_half()
    assert case.broken["first step without a number"] <= 6
    assert case.mended["losses"][-1] < case.mended["losses"][0]


def test_4_the_end_as_padding_is_never_learnt():
    case = cases.never_stops()
    assert (case.broken["texts that end"], case.mended["texts that end"]) == ("0 of 6", "6 of 6")


@needs_limits
def test_5_memory_runs_out_and_smaller_passes_fit_for_the_same_step():
    case = cases.out_of_memory()
    assert "can't allocate memory" in case.broken["result"]
    assert case.mended["result"] == "passed"
    assert case.broken["rows a step"] == case.mended["rows a step"] == 16
    assert known(case.symptom) == case.sign == "T1"
    assert case.broken["a card's words (injected)"] == "T1: out of memory."


def test_5_each_advice_saves_memory():
    peaks = {row["advice"]: row["peak_mib"] for row in cases.memory_savers(batch=2, length=128)}
    whole = peaks.pop("as it is")
    assert len(peaks) == 6
    assert all(peak < whole for name, peak in peaks.items() if name != "batch 2, more passes")
    assert peaks["batch 1, more passes"] < 0.6 * whole


def test_5_the_plan_grows_with_the_card_and_with_each_help():
    plan = cases.plan_for()
    for row in plan:
        assert row["8 GB"] <= row["12 GB"] <= row["16 GB"]
    for less, more in pairwise(plan):
        assert less["12 GB"] <= more["12 GB"]
    assert 1 <= plan[0]["12 GB"] < plan[-1]["12 GB"]


def test_5_the_plan_is_the_one_a_run_gets():
    from helpers.settings import TrainingSettings
    from helpers.training.cards import find_card
    from helpers.training.plan import plan_run

    settings = TrainingSettings.from_preset("rtx-4070-ti", gradient_accumulation_steps=1)
    run = plan_run(settings, card=find_card("RTX 4070 Ti"))
    rows = {row["way"]: row for row in cases.plan_for([12])}
    assert rows["bf16, chunked loss"]["12 GB"] == run.largest_batch


@pytest.mark.parametrize("ending", ["Killed", "RuntimeError: no such thing"])
def test_5_whatever_ended_the_child_is_what_is_shown(monkeypatch, ending):
    from helpers.troubleshooting import memory_cases
    from helpers.troubleshooting.child import ChildResult

    monkeypatch.setattr(memory_cases, "run_in_child", lambda *args, **options: ChildResult(1, f"a line\n{ending}"))
    case = cases.out_of_memory()
    assert case.symptom == case.broken["result"] == case.mended["result"] == ending


def test_6_a_displayed_model_outlives_del_and_not_xdel():
    case = cases.kept_by_display()
    assert set(case.broken.values()) == {"True"}
    assert set(case.mended.values()) == {"False"}


def test_7_a_traceback_keeps_what_a_failed_cell_held():
    case = cases.kept_by_traceback()
    assert case.broken["alive after the failed cell"] == "True"
    assert set(case.mended.values()) == {"False"}


def test_8_an_index_out_of_range_three_ways():
    case = cases.out_of_range()
    assert set(case.broken.values()) == {"IndexError: index out of range in self"}
    assert set(case.mended.values()) == {"accepted"}
    assert known(case.symptom) == case.sign


def test_9_each_old_line_is_refused_known_and_its_modern_line_accepted():
    rows = cases.old_script()
    assert len(rows) == 11
    assert {row["then"] for row in rows} == {"accepted"}
    assert {known(row["today"]) for row in rows} == {"D6", "D7", "D8", "D10", "D11", "D12", "D13", "D18"}


def test_9_the_migrated_script_trains():
    losses = cases.migrated_script()
    assert losses[-1] < losses[0] - 0.5


def test_10_a_script_is_refused_and_text_and_parquet_load():
    case = cases.script_data_set()
    assert "Dataset scripts are no longer supported" in case.broken["load_dataset"]
    assert "needs its owner" in case.broken["source='bookcorpus'"]
    assert list(case.mended.values()) == ["Parquet: 3 documents", "source='mine.txt': 3 documents"]
    assert known(case.symptom) == case.sign


def test_11_tied_weights_make_the_round_trip():
    case = cases.tied_weights()
    assert known(case.broken["saving"]) == "D16"
    assert known(case.broken["loading"]) == "D17"
    assert case.mended["loading"] == "from_pretrained: equal logits True"


def test_12_only_the_correct_resume_has_the_learning_rates_of_the_run():
    case = cases.resume_traps()
    straight = case.broken["learning rates from step 5"]
    assert case.mended["learning rates from step 5"] == straight
    assert case.broken["with twice the steps"] != straight
    assert case.broken["without scheduler.pt"][0] == 1e-3
    assert case.mended["losses equal to the run without a break"] is True
    assert case.mended["newest checkpoint cut short"].endswith("checkpoint-4")
    assert known(case.symptom) == "T17"


def test_13_a_spawned_worker_needs_a_module():
    case = cases.spawned_workers()
    assert "exited unexpectedly" in case.broken["class in the notebook"]
    assert case.mended["class in a module"] == "passed: 4 rows"
    assert known(case.symptom) == known(case.broken["class in the notebook"]) == case.sign


def test_14_learning_by_heart_repetition_and_labels_shifted_twice():
    heart = cases.by_heart()
    assert heart.mended["held-out loss"] < heart.broken["held-out loss"]
    assert "eval_loss rose" in heart.symptom
    circles = cases.repetition()
    name = "share of repeated 3-grams"
    assert circles.broken[name] > 0.5 > 0.2 > circles.mended[name]
    shifted = cases.shifted_twice()
    assert list(shifted.broken.values()) == pytest.approx([0, 1], abs=0.1)
    assert list(shifted.mended.values()) == pytest.approx([1, 0], abs=0.1)


def test_repeated_share_by_hand():
    assert repeated_share([1, 2, 3, 4]) == 0
    assert repeated_share([1] * 6) == 0.75


@needs_limits
def test_15_each_runner_fails_and_is_mended():
    found = {case.sign: case for case in cases.runners()}
    assert set(found) == {"T23", "T20", "T24", "T25", "T17"}
    assert {sign: known(case.symptom) for sign, case in found.items()} == {sign: sign for sign in found}
    assert found["T24"].broken["epochs used"] == "2"
    assert found["T24"].mended["epochs used"] == "5"
    assert found["T25"].mended["limit 2 s"] == "two cells of 1.2 s: 'passed'"
    assert found["T17"].mended["the file"] == "written"


def test_rows_are_shown_escaped():
    assert "&lt;b&gt;" in Rows([{"<b>": "<i>"}])._repr_html_()
    assert "<i>" not in Rows([{"<b>": "<i>"}])._repr_html_()


def test_a_result_is_shown_escaped():
    shown = cases.Reproduced("<b>x</b>", "<script>", {"a": "<i>"}, {"a": 0.5}, "T1")._repr_html_()
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert "&lt;script&gt;" in shown
    assert "a: <i> -> 0.5" in str(cases.Reproduced("x", "y", {"a": "<i>"}, {"a": 0.5}, "T1"))


def test_the_three_broken_runs_show_what_they_suffer_from():
    a, b, c = (broken_run(name) for name in "abc")
    assert explain(a.history).causes[0].id == "T7"
    assert explain(b.history).causes[0].id == "T9"
    assert explain(c.history).causes == ()  # its log looks well: only its labels tell
    assert c.labels == [*c.input_ids[1:], c.labels[-1]]
    assert a.labels == a.input_ids
    assert "<table>" in a._repr_html_()
