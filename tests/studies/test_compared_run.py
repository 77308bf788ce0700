import pytest

from helpers.studies.compared_run import read_run
from helpers.studies.comparison import compare
from tests.studies.recorded_runs import write_run


def test_an_early_stopped_run_has_the_loss_of_its_best_checkpoint(runs):
    folder = write_run(runs / "a", settings={"early_stopping_patience": 1})
    (folder / "history.jsonl").write_text('{"step": 1, "eval_loss": 2.0}\n{"step": 2, "eval_loss": 2.5}\n')
    assert read_run(folder).eval_loss == 2.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", '{"settings": null}'),
        ("history.jsonl", '{"eval_loss": 2.0}\n'),
        ("evaluation.json", '{"test": {"tuned": {"perplexity": "many"}}}'),
        ("evaluation.json", '{"test": {"tuned": {"bits_per_byte": NaN}}}'),  # it would be ranked as the best
    ],
)
def test_a_file_with_unexpected_content_marks_the_run_as_damaged(runs, name, content):
    folder = write_run(runs / "a")
    (folder / name).write_text(content)
    run = read_run(folder)
    assert (run.state, run.error.partition(" is damaged ")[0]) == ("damaged", str(folder / name))


@pytest.mark.parametrize("name", ["settings.json", "training.json", "evaluation.json", "history.jsonl"])
def test_a_damaged_file_is_reported_and_the_other_runs_are_still_compared(runs, name):
    (write_run(runs / "a") / name).write_text('{"tokens"')
    write_run(runs / "b")
    table = compare()
    assert [(run.name, run.state) for run in table.runs] == [("b", "done"), ("a", "damaged")]
    assert any(note.startswith(f"a, damaged: {runs / 'a' / name} is damaged (") for note in table.notes)


def test_a_finished_run_that_lost_its_settings_is_reported_and_not_ranked(runs):
    (write_run(runs / "a") / "settings.json").unlink()
    write_run(runs / "b")
    for table in (compare(), compare("a", "b")):
        assert {run.name: run.state for run in table.runs} == {"a": "damaged", "b": "done"}
        assert (
            table.notes[-1]
            == f"a, damaged: {runs / 'a' / 'settings.json'} is missing: copy the folder of the run again."
        )


def test_a_setting_missing_from_an_older_run_counts_as_its_default(runs):
    write_run(runs / "old")
    write_run(runs / "new", settings={"adam_beta2": 0.999})
    write_run(runs / "other", settings={"weight_decay": 0.5})
    assert compare().differing == ("weight_decay",)
