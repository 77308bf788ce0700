"""The three broken training runs of the exercises."""

import pytest

from helpers.troubleshooting import broken_run, explain


@pytest.fixture(scope="module")
def broken():
    return {name: broken_run(name) for name in "abc"}


@pytest.mark.parametrize(("name", "id_"), [("a", "T7"), ("b", "T9")])
def test_the_history_of_two_runs_shows_the_fault(broken, name, id_):
    assert explain(broken[name].history).causes[0].id == id_


def test_the_third_run_has_a_healthy_history_and_wrong_labels(broken):
    run = broken["c"]
    assert explain(run.history).causes == ()
    assert run.labels == [*run.input_ids[1:], run.labels[-1]]
    assert broken["a"].labels == broken["a"].input_ids


def test_a_run_is_shown_as_a_table_with_the_first_tokens_of_a_row(broken):
    shown = broken["a"]._repr_html_()
    assert "<table>" in shown
    assert f"{broken['a'].input_ids[:8]} input_ids" in shown


def test_each_run_is_shown_under_its_name(broken):
    assert [f">run_{name}: its log" in run._repr_html_() for name, run in broken.items()] == [True] * 3
