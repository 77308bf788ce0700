import shutil

import pytest

from helpers.settings import SettingsError, TrainingSettings
from helpers.training.run_files import (
    HistoryFile,
    check_same_settings,
    check_same_values,
    history_rows,
    kept_eval_loss,
    last_complete_checkpoint,
    read_history,
    step_of,
)


def test_a_history_keeps_only_known_columns():
    log = [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "x": 1}, {"step": 2, "sample": "The"}, {"step": 2, "runtime": 3}]
    assert history_rows(log) == [{"step": 1, "loss": 2.0, "grad_norm": 1.0}, {"step": 2, "sample": "The"}]


def test_a_history_round_trips(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "sample": "línea\nnueva\u2028"}]
    HistoryFile(tmp_path).write(rows)
    assert read_history(tmp_path) == rows


def test_each_history_row_is_serialised_once(tmp_path, monkeypatch):
    log, file, serialised = [], HistoryFile(tmp_path), []
    monkeypatch.setattr(
        "helpers.training.run_files.json.dumps", lambda row: serialised.append(row) or f'{{"step": {len(serialised)}}}'
    )
    for step in range(5):
        log.append({"step": step, "loss": 2.0})
        file.write(log)
    assert serialised == log
    assert read_history(tmp_path) == [{"step": number} for number in range(1, 6)]


def test_a_run_that_has_not_started_has_no_rows_and_no_validation_loss(tmp_path):
    assert read_history(tmp_path) == []
    for patience in (0, 1):
        assert kept_eval_loss([{"step": 1, "loss": 2.0}], early_stopping_patience=patience) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_truncated_checkpoint_is_skipped_and_its_damaged_file_is_named(tiny_run, name):
    folder = tiny_run.folder / "checkpoints"
    newest, older = sorted(folder.iterdir(), key=step_of, reverse=True)
    assert last_complete_checkpoint(folder) == newest
    with (newest / name).open("r+b") as file:
        file.truncate(300)
    with pytest.warns(UserWarning, match=f"{newest.name} is skipped: its {name}"):
        assert last_complete_checkpoint(folder) == older
    (older / name).unlink()
    with pytest.warns(UserWarning, match="is missing or incomplete"):
        assert last_complete_checkpoint(folder) is None


def test_a_checkpoint_of_two_processes_needs_the_rng_state_of_each(tiny_run):
    newest, older = sorted((tiny_run.folder / "checkpoints").iterdir(), key=step_of, reverse=True)
    shutil.copy(newest / "rng_state.pth", newest / "rng_state_0.pth")
    (newest / "rng_state.pth").rename(newest / "rng_state_1.pth")
    assert last_complete_checkpoint(newest.parent) == newest
    (newest / "rng_state_1.pth").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"its rng_state_1\.pth is missing or incomplete"):
        assert last_complete_checkpoint(newest.parent) == older


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", lambda data: data[:400] + bytes(200) + data[600:]),  # like a file after a power cut
        ("trainer_state.json", lambda data: b"null"),
    ],
)
def test_a_checkpoint_that_is_damaged_in_the_middle_is_skipped(tiny_run, name, damage):
    newest, older = sorted((tiny_run.folder / "checkpoints").iterdir(), key=step_of, reverse=True)
    (newest / name).write_bytes(damage((newest / name).read_bytes()))
    with pytest.warns(UserWarning, match=f"{newest.name} is skipped: its {name}"):
        assert last_complete_checkpoint(newest.parent) == older


def test_no_run_is_trained_in_the_folder_of_a_study(runs):
    (runs / "rates/trial-000").mkdir(parents=True)
    with pytest.raises(SettingsError, match="rates is the folder of a study: choose another run name"):
        check_same_values("rates", {"seed": 7})


@pytest.mark.parametrize("kept", ["checkpoints", "training.json"])
def test_a_run_that_lost_its_settings_is_not_continued(tiny_run, runs, kept):
    (runs / "mine").mkdir()
    shutil.move(tiny_run.folder / kept, runs / "mine" / kept)
    with pytest.raises(SettingsError, match=r"settings\.json is missing, so the settings of this run are unknown"):
        check_same_settings(TrainingSettings(run="mine"))


def test_a_folder_with_another_name_is_not_a_checkpoint(tiny_run):
    folder = tiny_run.folder / "checkpoints"
    newest = last_complete_checkpoint(folder)
    shutil.copytree(newest, folder / f"{newest.name} copy")
    assert last_complete_checkpoint(folder) == newest
