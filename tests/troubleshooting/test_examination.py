"""`examine` on a run that learns, and on runs that are each broken in one place."""

import json
import math

import pytest

from helpers.settings import SettingsError
from helpers.troubleshooting import examination as module
from helpers.troubleshooting import examine


def statuses(examination):
    return {check.id: check.status for check in examination.checks}


@pytest.fixture
def few_steps(monkeypatch):
    """Overfit one batch for one step only, in tests of another check."""
    monkeypatch.setattr(module, "_MAX_STEPS", 1)


@pytest.fixture
def prepared(tiny_settings, runs):
    """Return the settings of a run that has data and is not trained yet; its model is the shipped one."""
    from helpers.data.preparation import prepare

    settings = tiny_settings.model_copy(update={"model_name_or_path": "pocket", "run": "mine"})
    prepare(settings)
    return settings


def test_a_run_that_learns_passes_every_check(prepared):
    from helpers.training.fine_tuning import fine_tune

    fine_tune(prepared)
    examination = examine("mine")
    assert set(statuses(examination).values()) == {"ok"}
    assert examination.verdict.startswith("No fault was found between text and optimizer")
    assert "The fox went" in examination.checks[0].reading or "went to the" in examination.checks[0].reading


def test_an_untrained_run_is_examined_except_for_its_history(prepared):
    examination = examine("mine")
    assert statuses(examination)["the history"] == "unknown"
    assert statuses(examination)["overfit one batch"] == "ok"
    assert "not checked: the history" in examination.verdict


def test_examining_changes_nothing_in_the_folder(prepared, few_steps, runs):
    before = {path: path.stat().st_mtime_ns for path in (runs / "mine").rglob("*") if path.is_file()}
    examine("mine")
    assert {path: path.stat().st_mtime_ns for path in (runs / "mine").rglob("*") if path.is_file()} == before


def test_a_model_no_better_than_a_guess_fails_the_forward_pass(tiny_settings, few_steps):
    from helpers.data.preparation import prepare

    prepare(tiny_settings)  # the tiny model of the tests has random weights, so it only guesses
    examination = examine("tiny")
    assert statuses(examination)["one forward pass"] == "fail"
    assert examination.verdict.startswith("Begin here: one forward pass. A pretrained model beats a guess")


def replace_blocks(folder, row):
    """Replace each split of a run's data with four copies of one row of tokens."""
    from datasets import Dataset, DatasetDict, load_from_disk

    rows = Dataset.from_dict({"input_ids": [row] * 4}).with_format("torch")
    parts = list(load_from_disk(folder / "data/blocks"))
    (folder / "data/blocks").rename(folder / "old")
    DatasetDict(dict.fromkeys(parts, rows)).save_to_disk(folder / "data/blocks")


def test_a_row_of_one_repeated_token_fails_the_first_check(prepared, few_steps, runs):
    replace_blocks(runs / "mine", [4095] * 32)
    examination = examine("mine")
    assert statuses(examination)["a row, decoded back"] == "fail"
    assert examination.verdict.startswith("Begin here: a row, decoded back")


def test_rows_without_an_end_of_text_give_a_warning(prepared, few_steps, runs):
    assert statuses(examine("mine"))["an end among the labels"] == "ok"
    replace_blocks(runs / "mine", [*range(100, 132)])
    check = examine("mine").checks[1]
    assert (check.status, check.reading) == ("warn", "0 of 128 labels are an end of text")
    assert "never stops" in check.why


def test_a_broken_history_is_reported_with_its_cause(prepared, few_steps, runs):
    rows = [{"step": n, "loss": 0.0, "grad_norm": math.nan} for n in range(3)]
    (runs / "mine" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = examine("mine").checks[-1]
    assert (check.status, check.why.split()[0]) == ("fail", "T6")


def test_missing_tokenizer_files_are_recognised(prepared, runs, tmp_path):
    facts = runs / "mine" / "data" / "data.json"
    record = json.loads(facts.read_text())
    record["settings"]["model_name_or_path"] = str(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    facts.write_text(json.dumps(record))
    checks = examine("mine").checks
    assert checks[0].status == "fail"
    assert "tokenizer" in checks[0].why


def test_a_missing_run_is_refused():
    with pytest.raises(SettingsError, match="holds no data yet"):
        examine("nothing")


def test_an_examination_is_escaped_and_has_no_control_characters(prepared, few_steps, runs):
    (runs / "mine" / "history.jsonl").write_text(json.dumps({"step": 1, "loss": "nan", "\x1b<b>": 1}) + "\n")
    examination = examine("mine")
    assert "<b>" not in examination._repr_html_().replace("<p><b>", "")
    assert "\x1b" not in str(examination)
