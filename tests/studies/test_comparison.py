import contextlib
import csv
import io
import json
import math

import pytest

from helpers.settings import SettingsError
from helpers.studies.comparison import compare, promote
from helpers.studies.comparison_page import write_page
from helpers.training.finished_run import open_run
from tests.studies.recorded_runs import OTHER_TEXT, TEXT, write_documents, write_run, write_trials


def test_runs_are_sorted_and_only_differing_settings_are_shown(runs):
    write_run(runs / "a", perplexity=30.0, settings={"learning_rate": 1e-2})
    write_run(runs / "b", perplexity=20.0)
    table = compare("a", "b")
    assert [run.name for run in table.runs] == ["b", "a"]
    assert table.differing == ("learning_rate",)
    assert [run.name for run in table.best] == ["b"]
    assert str(table).splitlines() == [
        f"By bits per byte, best first (test text {TEXT[:12]})",
        "  run learning_rate perplexity    95% interval bits per byte      95% interval validation loss  time "
        "peak memory tokens state",
        "1   b         0.001      20.00  19.00 to 22.00        2.0000  1.9000 to 2.2000          3.0000  75 s "
        "      3 MiB  4,096  done",
        "2   a          0.01      30.00  29.00 to 32.00        3.0000  1.9000 to 2.2000          3.0000  75 s "
        "      3 MiB  4,096  done",
        "",
        "The best of 2 by a test metric looks too good: choose by eval_loss.",
        "Best: b, bits per byte 2 with learning_rate 0.001.",
    ]


def test_each_differing_setting_has_a_column_and_the_best_run_is_named_without_many(runs):
    unlike = {"learning_rate": 1e-2, "block_size": 512, "seed": 7, "weight_decay": 0.2, "source_config": "<b>"}
    write_run(runs / "a", perplexity=20.0, settings=unlike)
    write_run(runs / "b", perplexity=30.0)
    shown = str(compare())
    assert all(name in shown.splitlines()[1] for name in unlike)
    assert shown.endswith("Best: a, bits per byte 2.")
    assert "&lt;b&gt;" in compare()._repr_html_()
    assert "weight_decay" in compare().to_csv()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_width_of_the_terminal(runs, monkeypatch, columns):
    for name in "ab":
        write_run(runs / f"a-name-of-twenty-five-as-{name}")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = str(compare()).splitlines()
    assert len(lines) > 6, "the table is split in two"
    assert max(map(len, lines)) <= columns


def test_runs_can_be_ranked_by_another_metric(runs):
    write_run(runs / "a", perplexity=30.0, eval_loss=2.0)
    write_run(runs / "b", perplexity=20.0, eval_loss=3.0)
    assert [run.name for run in compare(by="eval_loss").runs] == ["a", "b"]
    with pytest.raises(SettingsError, match="by = 'loss' is not allowed: it must be one of 'perplexity'"):
        compare(by="loss")


def test_runs_on_different_texts_are_never_ranked_together(runs):
    write_run(runs / "a", perplexity=30.0)
    write_run(runs / "b", perplexity=20.0, text=OTHER_TEXT, settings={"seed": 7})
    write_run(runs / "c", perplexity=25.0, settings={"learning_rate": 1e-2})
    table = compare()
    assert table.verdicts[0].endswith("with learning_rate 0.01."), "only the runs on this text are compared"
    assert " with " not in table.verdicts[1], "nothing was compared with it"
    first, second = (part.splitlines()[1] for part in str(table).split("\n\n")[:2])
    assert "learning_rate" in first
    assert "seed" not in first
    assert not any(name in second for name in ("learning_rate", "seed"))
    assert [[run.name for run in group] for group in table.groups] == [["c", "a"], ["b"]]
    assert [run.name for run in table.best] == ["c", "b"]
    assert "measured on 2 different texts" in table.notes[0]
    assert [row["rank"] for row in table.rows] == [1, 2, 1]


def test_validation_losses_on_different_texts_are_not_ranked_together(runs):
    write_run(runs / "a", eval_loss=2.0)
    write_run(runs / "b", eval_loss=1.0, validation="w" * 64)
    assert len(compare().groups) == 1, "bits per byte were measured on one test text"
    table = compare(by="eval_loss")
    assert [row["rank"] for row in table.rows] == [1, 1]
    assert "measured on 2 different texts" in table.notes[0]
    assert f"(validation text {'w' * 12})" in str(table)


def test_a_note_names_the_text_by_the_same_hash_as_the_table(runs):
    write_run(runs / "a", perplexity=None, text="w" * 64)
    write_run(runs / "b")
    table = compare()
    assert f"(test text {'w' * 12})" in str(table)
    assert "perplexity" not in str(table).splitlines()[1], "no run in this table has one"
    assert table.verdicts == ["Best: b, bits per byte 2."]
    assert any(note.startswith(f"Some runs on text {'w' * 12} have no test metrics") for note in table.notes)


@pytest.mark.parametrize("by", ["eval_loss", "bits_per_byte"])
def test_metrics_of_completions_are_not_ranked_against_metrics_of_all_tokens(runs, by):
    part = {"documents": 1, "bytes": 9, "sha256": "c" * 64}
    facts = {"settings": {}, "source_sha256": None, "splits": dict.fromkeys(("train", "validation", "test"), part)}
    for name, train_on in (("a", "all"), ("b", "completion")):
        write_run(runs / name, settings={"train_on": "auto"})
        (runs / name / "data").mkdir()
        (runs / name / "data/data.json").write_text(json.dumps(facts | {"documents": {"train_on": train_on}}))
    table = compare(by=by)
    assert [[run.name for run in group] for group in table.groups] == [["a"], ["b"]]
    assert ", completions)" in str(table)


def test_a_copied_folder_is_compared_and_a_hidden_one_is_not(runs):
    for name in ("a", "a (copy)", ".old"):
        write_run(runs / name)
    table = compare()
    assert [run.name for run in table.runs] == ["a", "a (copy)"]


def test_different_block_sizes_are_noted_next_to_validation_losses(runs):
    for name, block_size in (("a", 128), ("b", 256)):
        write_run(runs / name, settings={"block_size": block_size})
    assert any(note.startswith("The block sizes differ") for note in compare(by="eval_loss").notes)
    assert not any(note.startswith("The block sizes differ") for note in compare().notes)


def test_a_nan_loss_is_not_ranked_and_does_not_break_the_page(runs, tmp_path):
    for name, loss in (("a", 2.0), ("b", math.nan), ("c", 1.0)):
        write_run(runs / name, perplexity=None, eval_loss=loss, settings={"learning_rate": loss})
    table = compare(by="eval_loss")
    assert [(row["run"], row["rank"]) for row in table.rows] == [("c", 1), ("a", 2), ("b", None)]
    write_page(table, tmp_path / "page.html")


def test_experiments_next_to_a_trial_are_not_trials(runs):
    write_trials(runs)
    write_run(runs / "rates/trial-000-rate-1")
    assert len(compare("rates").runs) == 4
    assert compare("rates").by == "eval_loss"


def test_without_names_all_runs_and_studies_are_compared(runs):
    write_trials(runs)
    write_run(runs / "alone")
    assert {run.name for run in compare().runs} == {"alone", *(f"rates/trial-00{n}" for n in range(4))}
    assert compare("rates/").runs == compare("rates").runs, "a shell adds the slash"


def test_a_run_without_evaluation_shows_its_validation_loss_and_has_no_rank(runs):
    write_run(runs / "a", perplexity=None, eval_loss=1.0)
    write_run(runs / "b", perplexity=20.0, eval_loss=3.0)
    table = compare()
    assert [(run.name, run.perplexity, run.eval_loss) for run in table.runs] == [("b", 20.0, 3.0), ("a", None, 1.0)]
    assert "Their validation loss is shown" in table.notes[0]
    assert [row["rank"] for row in table.rows] == [1, None]
    write_run(runs / "c", perplexity=None, eval_loss=0.5)
    for name in ("d", "e"):
        (write_run(runs / name, perplexity=None) / "history.jsonl").unlink()
    assert [run.name for run in compare().runs] == ["b", "c", "a", "d", "e"], "then by validation loss, if there is one"


def verdict_on(runs, best, second, **options):
    for name, perplexity, nats in (("a", 20.0, best), ("b", 21.0, second), ("c", 22.0, [99.0] * len(best))):
        if not (runs / name).exists():
            write_run(runs / name, perplexity=perplexity, **options)
        write_documents(runs / name, nats)
    (verdict,) = compare("a", "b", "c").verdicts
    return verdict


def test_the_best_run_is_compared_with_the_second_on_the_same_documents(runs):
    nats = [60.0 + number for number in range(20)]
    verdict = verdict_on(runs, nats, [each + 6.9315 + number % 2 for number, each in enumerate(nats)])
    assert verdict.startswith(
        "Best: a, bits per byte 2. On the test text it needs 0.1072 bits per byte fewer than b (95% interval of the "
        "gain 0.1"
    ), "(6.9315 + 0.5) nats / ln 2 / 100 bytes; paired, because documents differ by more than the runs"
    assert verdict.endswith(").")
    small = [each + (number % 2 - 0.4) for number, each in enumerate(nats)]
    assert "includes 0, so this may be due to the choice of the test text" in verdict_on(runs, nats, small)
    worse = [each - 7 for each in nats]
    assert "it needs 0.1010 bits per byte more than b" in verdict_on(runs, nats, worse), "as by the validation loss"
    assert "so few test documents cannot tell" in verdict_on(runs, nats[:5], worse[:5])


def test_runs_are_not_compared_on_other_documents_or_windows(runs):
    alone = "Best: a, bits per byte 2."
    assert verdict_on(runs, [], []) == alone
    assert verdict_on(runs, [1.0] * 9, [2.0] * 9) != alone
    write_documents(runs / "b", [2.0] * 9, text="other")
    assert compare().verdicts == [alone]
    write_documents(runs / "b", [2.0] * 8)
    assert compare().verdicts == [alone]
    write_run(runs / "a2", perplexity=20.5, context=128)
    write_documents(runs / "a2", [1.0] * 9)
    assert compare().verdicts == [alone]


def test_a_damaged_record_of_the_documents_is_named(runs):
    verdict_on(runs, [1.0] * 9, [2.0] * 9)
    write_documents(runs / "b", [None] * 9)
    run = next(run for run in compare().runs if run.name == "b")
    assert run.state == "damaged"
    assert "test.documents.0.tuned_nats is None" in run.error


def test_a_choice_by_the_test_text_is_noted_and_one_by_the_validation_text_is_not(runs):
    write_run(runs / "a")
    assert compare().notes == [], "nothing is chosen"
    write_run(runs / "b")
    assert "choose by eval_loss" in compare().notes[0]
    assert "choose by eval_loss" in compare(by="perplexity").notes[0]
    assert compare(by="eval_loss").notes == []


def test_different_windows_are_noted(runs):
    write_run(runs / "a", context=256)
    write_run(runs / "b", context=128)
    assert "The windows differ (128 tokens by 128, 256 tokens by 128)" in compare().notes[0]


def test_different_models_are_noted_only_for_metrics_that_depend_on_the_tokenizer(runs):
    write_run(runs / "a", settings={"model_name_or_path": "pocket"})
    write_run(runs / "b", settings={"model_name_or_path": "gpt2"})
    assert not any("different models" in note for note in compare().notes)
    assert "compare bits per byte only" in compare(by="perplexity").notes[0]


@pytest.mark.parametrize(("tokenizer", "has_note"), [("train", True), ("", False)])
def test_models_with_trained_tokenizers_of_different_sizes_are_different(runs, tokenizer, has_note):
    for name, vocab_size in (("a", 500), ("b", 600)):
        settings = {"model_name_or_path": "pocket", "tokenizer": tokenizer, "vocab_size": vocab_size}
        write_run(runs / name, settings=settings)
    assert any("start from different models" in note for note in compare(by="perplexity").notes) == has_note


def test_a_finished_trial_without_a_training_record_is_noted(runs):
    write_trials(runs)
    assert not any("no training record" in note for note in compare("rates").notes)
    (runs / "rates/trial-001/training.json").unlink()
    assert "Some runs have no training record: time, memory and tokens are not known." in compare("rates").notes


def test_a_long_value_is_shortened_and_a_missing_one_is_left_out(runs):
    write_run(runs / "a", settings={"source": "a-folder/with/texts/of/mine/stories.txt"})
    for name, stride in (("b", 64), ("c", 32)):  # a notebook's parameter
        write_run(runs / name, perplexity=30.0, settings={"stride": stride})
    table = compare()
    assert table.verdicts == ["Best: a, bits per byte 2 with source …xts/of/mine/stories.txt."]


def test_a_study_is_ranked_by_its_metric_with_unfinished_trials_last(runs):
    write_trials(runs)
    table = compare("rates")
    assert table.by == "eval_loss"
    assert [(run.name, run.state) for run in table.runs] == [
        ("rates/trial-001", "done"),
        ("rates/trial-000", "done"),
        ("rates/trial-002", "pruned"),
        ("rates/trial-003", "failed"),
    ]
    assert table.notes == ["rates/trial-003, failed: <b>broken</b>"]
    assert table.differing == ("learning_rate",), "a trial that failed before its training records only its parameters"
    assert compare("rates/trial-001").runs[0].folder == runs / "rates/trial-001"


def test_text_is_escaped_in_html(runs):
    write_trials(runs)
    page = compare("rates")._repr_html_()
    assert "<b>broken</b>" not in page
    assert "&lt;b&gt;broken&lt;/b&gt;" in page
    assert "<p>Best: rates/trial-001, " in page


def test_the_csv_contains_every_row_and_reads_back(runs):
    write_trials(runs)
    table = compare("rates")
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["run"] for row in rows] == [run.name for run in table.runs]
    assert " ".join(rows[0]) == (
        "text rank run learning_rate perplexity bits_per_byte eval_loss perplexity_low perplexity_high "
        "bits_per_byte_low bits_per_byte_high seconds peak_bytes tokens text_sha256 state"
    )
    assert (rows[0]["text"], rows[0]["perplexity_low"], rows[0]["perplexity_high"]) == ("1", "20.0", "23.0")
    assert rows[3]["perplexity"] == ""


def test_text_that_looks_like_a_formula_is_escaped_in_the_csv(runs):
    prompts = ['=HYPERLINK("http://x")', "+1", "-1+1", "@SUM(A1)", "The = sign"]
    for number, prompt in enumerate(prompts):
        write_run(runs / f"run-{number}", settings={"sample_prompt": prompt})
    cells = {row["sample_prompt"] for row in csv.DictReader(io.StringIO(compare().to_csv()))}
    assert cells == {*(f"'{prompt}" for prompt in prompts[:4]), "The = sign"}


def test_the_error_for_an_unknown_run_lists_the_existing_ones(runs):
    with pytest.raises(SettingsError, match="There are no runs"):
        compare()
    write_trials(runs)
    write_run(runs / "a")
    with pytest.raises(SettingsError, match=r"There is no run or study 'b' in .*; there are a, rates"):
        compare("b")
    with pytest.raises(SettingsError, match=r"There is no run or study 'raets' in .*; did you mean 'rates'\?"):
        compare("raets")
    with pytest.raises(SettingsError, match="not a plain name"):
        compare("../x")
    (runs / "new").mkdir()
    with pytest.raises(SettingsError, match=r"new holds no settings\.json, because no training has begun in it"):
        compare("new")


def test_a_list_of_runs_is_refused_with_an_example():
    with pytest.raises(
        SettingsError, match=r"\['a', 'b'\] is not the name of a run: give names, as in compare\('mine'"
    ):
        compare(["a", "b"])


def test_the_best_trial_can_be_promoted_to_a_run(runs, tiny_run, tmp_path):
    (runs / "study").mkdir()
    trial = runs / "study/trial-000"
    tiny_run.folder.rename(trial)
    record = json.loads((trial / "settings.json").read_text())
    record["settings"]["run"] = "trial-000"
    (trial / "settings.json").write_text(json.dumps(record))
    (trial / "trial.json").write_text(json.dumps({"state": "done", "optimise": "eval_loss", "parameters": {}}))
    (trial / "evaluation.json").write_text(json.dumps({"version": 1, "run": "trial-000", "test": None}))
    with contextlib.suppress(OSError):  # a system that cannot create links
        (trial / "model/notes.txt").symlink_to(tmp_path / "id_rsa")
    before = sorted(path for path in trial.rglob("*"))
    target = promote(compare("study").best[0], "promoted")
    assert target == runs / "promoted"
    opened = open_run("promoted")
    assert (opened.run, opened.facts) == ("promoted", tiny_run.facts)
    assert json.loads((target / "settings.json").read_text())["settings"]["run"] == "promoted"
    assert json.loads((target / "evaluation.json").read_text())["run"] == "promoted"
    assert (target / "model/model.safetensors").exists()
    assert not (target / "trial.json").exists()
    copied = target / "model/notes.txt"
    assert copied.is_symlink() == (trial / "model/notes.txt").is_symlink(), "`share` refuses a link, but not a copy"
    assert sorted(path for path in trial.rglob("*")) == before, "the trial is unchanged"
    assert compare("promoted").runs[0].state == "done"
    with pytest.raises(SettingsError, match=r"The folder .* already exists"):
        promote(compare("study").best[0], "promoted")


def test_a_result_of_somebody_elses_study_sends_no_escapes_to_the_terminal(runs):
    (runs / "theirs/trial-000").mkdir(parents=True)
    record = {"state": "failed", "error": "broken \x1b]0;owned\x07\x1b[8m", "parameters": {"source": "\x1b[2Ja.txt"}}
    (runs / "theirs/trial-000/trial.json").write_text(json.dumps(record))
    assert "\x1b" not in str(compare("theirs"))


def test_an_unfinished_trial_cannot_be_promoted(runs):
    write_trials(runs)
    with pytest.raises(SettingsError, match="has no finished training"):
        promote(compare("rates").runs[-1], "promoted")
    assert not (runs / "promoted").exists()
