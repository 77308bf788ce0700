import csv
import io
import json
import math

import pytest
from click.testing import CliRunner

from helpers.__main__ import main
from helpers.settings import SettingsError
from helpers.studies.comparison import compare, promote, read_run
from helpers.studies.comparison_page import write_page
from helpers.training.fine_tuning import open_run

TEXT, OTHER_TEXT, VALIDATION = "a" * 64, "b" * 64, "c" * 64


def write_run(
    folder, *, perplexity=20.0, eval_loss=3.0, text=TEXT, validation=VALIDATION, settings=None, context=256, **trial
):
    """Write what a finished run's folder holds; `perplexity=None`: it was never evaluated."""
    folder.mkdir(parents=True)
    record = {"settings": {"run": folder.name, "learning_rate": 1e-3, "source": "fables", **(settings or {})}}
    hashes = {"data_sha256": {"test": text, "validation": validation}}
    (folder / "settings.json").write_text(json.dumps(record | hashes))
    (folder / "training.json").write_text(json.dumps({"tokens": 4096, "seconds": 75.0, "peak_bytes": 3 * 2**20}))
    rows = [{"step": 10, "eval_loss": eval_loss + 1}, {"step": 20, "eval_loss": eval_loss}, {"step": 20, "sample": "x"}]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if perplexity is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation(perplexity, text, context, folder.name)))
    if trial:
        (folder / "trial.json").write_text(json.dumps(trial))
    return folder


def evaluation(perplexity, text, context, run):
    figures = {"perplexity": perplexity, "bits_per_byte": perplexity / 10, "context": context, "stride": 128}
    intervals = {"perplexity_interval": [perplexity - 1, perplexity + 2], "bits_per_byte_interval": [1.9, 2.2]}
    test = {"text_sha256": text, "base": figures, "tuned": figures | intervals, "documents": []}
    return {"version": 1, "run": run, "test": test, "forgetting": None, "copying": None, "speech": None}


def test_runs_are_sorted_and_only_what_differs_is_shown(runs):
    write_run(runs / "a", perplexity=30.0, settings={"learning_rate": 1e-2})
    write_run(runs / "b", perplexity=20.0)
    table = compare("a", "b")
    assert [run.name for run in table.runs] == ["b", "a"]
    assert table.differing == ("learning_rate",)
    assert [run.name for run in table.best] == ["b"]
    assert str(table).splitlines() == [
        f"By bits per byte, best first (test text {TEXT[:12]})",
        "   run  learning_rate  perplexity  95% interval    bits per byte  95% interval      validation loss  time  "
        "peak memory  tokens  state",
        "1  b    0.001          20.00       19.00 to 22.00  2.0000         1.9000 to 2.2000  3.0000           75 s  "
        "3 MiB        4,096   done",
        "2  a    0.01           30.00       29.00 to 32.00  3.0000         1.9000 to 2.2000  3.0000           75 s  "
        "3 MiB        4,096   done",
        "",
        "Best: b, bits per byte 2 with learning_rate 0.001.",
    ]


def test_another_figure_may_rank(runs):
    write_run(runs / "a", perplexity=30.0, eval_loss=2.0)
    write_run(runs / "b", perplexity=20.0, eval_loss=3.0)
    assert [run.name for run in compare(by="eval_loss").runs] == ["a", "b"]
    with pytest.raises(SettingsError, match="by = 'loss' is not allowed: it must be one of 'perplexity'"):
        compare(by="loss")


def test_runs_on_different_texts_are_never_ranked_together(runs):
    write_run(runs / "a", perplexity=30.0)
    write_run(runs / "b", perplexity=20.0, text=OTHER_TEXT)
    write_run(runs / "c", perplexity=25.0)
    table = compare()
    assert [[run.name for run in group] for group in table.groups] == [["c", "a"], ["b"]]
    assert [run.name for run in table.best] == ["c", "b"]
    assert "measured on 2 different texts" in table.notes[0]
    assert [row["rank"] for row in table.rows] == [1, 2, 1]


def test_the_validation_loss_is_ranked_on_one_validation_text_alone(runs):
    write_run(runs / "a", eval_loss=2.0)
    write_run(runs / "b", eval_loss=1.0, validation="w" * 64)
    assert len(compare().groups) == 1, "bits per byte were measured on one test text"
    table = compare(by="eval_loss")
    assert [row["rank"] for row in table.rows] == [1, 1]
    assert "measured on 2 different texts" in table.notes[0]
    assert f"(validation text {'w' * 12})" in str(table)


def test_block_sizes_that_differ_are_told_beside_validation_losses(runs):
    for name, block_size in (("a", 128), ("b", 256)):
        write_run(runs / name, settings={"block_size": block_size})
    assert any(note.startswith("The block sizes differ") for note in compare(by="eval_loss").notes)
    assert not any(note.startswith("The block sizes differ") for note in compare().notes)


def test_a_loss_that_is_no_number_is_not_ranked_and_not_drawn(runs, tmp_path):
    for name, loss in (("a", 2.0), ("b", math.nan), ("c", 1.0)):
        write_run(runs / name, perplexity=None, eval_loss=loss, settings={"learning_rate": loss})
    table = compare(by="eval_loss")
    assert [(row["run"], row["rank"]) for row in table.rows] == [("c", 1), ("a", 2), ("b", None)]
    write_page(table, tmp_path / "page.html")


def test_the_experiments_that_a_trial_leaves_beside_itself_are_no_trials(runs):
    trials(runs)
    write_run(runs / "rates/trial-000-rate-1")
    assert len(compare("rates").runs) == 4
    assert compare("rates").by == "eval_loss"


def test_without_names_studies_are_compared_too(runs):
    trials(runs)
    write_run(runs / "alone")
    assert {run.name for run in compare().runs} == {"alone", *(f"rates/trial-00{n}" for n in range(4))}
    assert compare("rates/").runs == compare("rates").runs, "as a shell completes it"


def test_a_run_without_evaluation_shows_its_validation_loss_as_such(runs):
    write_run(runs / "a", perplexity=None, eval_loss=1.0)
    write_run(runs / "b", perplexity=20.0, eval_loss=3.0)
    table = compare()
    assert [(run.name, run.perplexity, run.eval_loss) for run in table.runs] == [("b", 20.0, 3.0), ("a", None, 1.0)]
    assert "Their validation loss is shown" in table.notes[0]
    assert [row["rank"] for row in table.rows] == [1, None]


def test_early_stopping_counts_the_model_that_was_kept(runs):
    folder = write_run(runs / "a", settings={"early_stopping_patience": 1})
    (folder / "history.jsonl").write_text('{"step": 1, "eval_loss": 2.0}\n{"step": 2, "eval_loss": 2.5}\n')
    assert read_run(folder).eval_loss == 2.0


def test_windows_that_differ_are_told(runs):
    write_run(runs / "a", context=256)
    write_run(runs / "b", context=128)
    assert "The windows differ (128 tokens by 128, 256 tokens by 128)" in compare().notes[0]


def test_models_that_differ_are_told_where_their_tokenizers_count(runs):
    write_run(runs / "a", settings={"model_name_or_path": "pocket"})
    write_run(runs / "b", settings={"model_name_or_path": "gpt2"})
    assert compare().notes == []
    assert "compare bits per byte only" in compare(by="perplexity").notes[0]


def trials(runs):
    for number, (state, loss) in enumerate([("done", 3.0), ("done", 2.0), ("pruned", 1.0)]):
        asked = {"optimise": "eval_loss", "parameters": {"learning_rate": 10.0**-number, "stride": 64}, "state": state}
        write_run(runs / f"rates/trial-{number:03d}", perplexity=20.0 + number, eval_loss=loss, **asked)
    failed = runs / "rates/trial-003"
    failed.mkdir()
    failed.joinpath("trial.json").write_text(
        json.dumps(
            {"parameters": {"learning_rate": 0.1}, "state": "failed", "error": "<b>broken</b>", "optimise": "eval_loss"}
        )
    )


def test_a_study_is_ranked_by_what_it_optimises_and_what_did_not_finish_comes_last(runs):
    trials(runs)
    table = compare("rates")
    assert table.by == "eval_loss"
    assert [(run.name, run.state) for run in table.runs] == [
        ("rates/trial-001", "done"),
        ("rates/trial-000", "done"),
        ("rates/trial-002", "pruned"),
        ("rates/trial-003", "failed"),
    ]
    assert table.notes == ["rates/trial-003, failed: <b>broken</b>"]
    assert compare("rates/trial-001").runs[0].folder == runs / "rates/trial-001"


def test_all_text_is_escaped(runs):
    trials(runs)
    page = compare("rates")._repr_html_()
    assert "<b>broken</b>" not in page
    assert "&lt;b&gt;broken&lt;/b&gt;" in page


def test_the_csv_holds_every_row_and_reads_back(runs):
    trials(runs)
    table = compare("rates")
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["run"] for row in rows] == [run.name for run in table.runs]
    assert float(rows[0]["perplexity_high"]) == 23.0
    assert rows[3]["perplexity"] == ""


def test_the_page_holds_table_and_pictures_and_needs_no_network(runs, tmp_path):
    trials(runs)
    write_page(compare("rates"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img alt=") == 2
    assert 'src="http' not in page
    assert "<script" not in page


def test_unknown_runs_are_answered_with_those_there_are(runs):
    with pytest.raises(SettingsError, match="There are no runs"):
        compare()
    trials(runs)
    write_run(runs / "a")
    with pytest.raises(SettingsError, match=r"There is no run or study 'b' in .*; there are a, rates"):
        compare("b")
    with pytest.raises(SettingsError, match="not a plain name"):
        compare("../x")


@pytest.mark.parametrize("name", ["settings.json", "training.json", "evaluation.json", "history.jsonl"])
def test_a_damaged_file_is_told_and_the_other_runs_are_compared(runs, name):
    (write_run(runs / "a") / name).write_text('{"tokens"')
    write_run(runs / "b")
    table = compare()
    assert [(run.name, run.state) for run in table.runs] == [("b", "done"), ("a", "damaged")]
    assert any(note.startswith(f"a, damaged: {name} is damaged (") for note in table.notes)


def test_the_best_trial_becomes_a_run_of_its_own(runs, tiny_run):
    (runs / "study").mkdir()
    trial = runs / "study/trial-000"
    tiny_run.folder.rename(trial)
    record = json.loads((trial / "settings.json").read_text())
    record["settings"]["run"] = "trial-000"
    (trial / "settings.json").write_text(json.dumps(record))
    (trial / "trial.json").write_text(json.dumps({"state": "done", "optimise": "eval_loss", "parameters": {}}))
    (trial / "evaluation.json").write_text(json.dumps({"version": 1, "run": "trial-000", "test": None}))
    before = sorted(path for path in trial.rglob("*"))
    target = promote(compare("study").best[0], "mine")
    assert target == runs / "mine"
    opened = open_run("mine")
    assert (opened.run, opened.facts) == ("mine", tiny_run.facts)
    assert json.loads((target / "settings.json").read_text())["settings"]["run"] == "mine"
    assert json.loads((target / "evaluation.json").read_text())["run"] == "mine"
    assert (target / "model/model.safetensors").exists()
    assert not (target / "trial.json").exists()
    assert sorted(path for path in trial.rglob("*")) == before, "the trial stays what it was"
    assert compare("mine").runs[0].state == "done"
    with pytest.raises(SettingsError, match=r"There is a folder .* already"):
        promote(compare("study").best[0], "mine")


def test_the_command_writes_the_table_and_promotes_the_best(runs, tmp_path):
    trials(runs)
    asked = [
        "compare",
        "rates",
        "--csv",
        str(tmp_path / "a.csv"),
        "--html",
        str(tmp_path / "a.html"),
        "--promote",
        "best",
    ]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "Best: rates/trial-001, eval loss 2" in result.output
    assert f"rates/trial-001 is now the run best: {runs / 'best'}" in result.output
    assert (tmp_path / "a.csv").read_text() == compare("rates").to_csv()
    assert "<table>" in (tmp_path / "a.html").read_text()
    assert compare("best").runs[0].eval_loss == 2.0


def test_the_command_does_not_choose_between_texts(runs):
    write_run(runs / "a")
    write_run(runs / "b", text=OTHER_TEXT)
    result = CliRunner().invoke(main, ["compare", "--promote", "best"])
    assert result.exit_code == 2
    assert "There is not one best run but 2: name the one to promote" in result.output


def test_an_unfinished_trial_is_not_promoted(runs):
    trials(runs)
    with pytest.raises(SettingsError, match="has no finished training"):
        promote(compare("rates").runs[-1], "mine")
    assert not (runs / "mine").exists()
