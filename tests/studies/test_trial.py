import json
import os
import sys

import nbformat
import optuna
import pytest
from optuna.trial import TrialState

from helpers.course import CourseError
from helpers.settings import run_folder
from helpers.studies.comparison import compare
from helpers.studies.queue import open_study, state_of, trials_of
from helpers.studies.study_file import read_study
from helpers.studies.trial import StudyPausedError
from helpers.studies.worker import work
from helpers.training.pruning import PLACE
from tests.studies.conftest import CHEAP, count_starts, run_worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_each_trial_is_a_run_with_its_notebook_record_and_log(study_file, runs):
    ours = ("COURSE_RUNS", PLACE)  # libraries set variables of their own
    before = [os.environ.get(name) for name in ours]
    study, optuna_study = run_worker(study_file(vary={"learning_rate": [0.001, 0.002]}, settings={"weight_decay": 0.2}))
    assert [os.environ.get(name) for name in ours] == before
    assert study.folder == runs / "grid"
    record = json.loads((study.folder / "trial-001/trial.json").read_text())
    assert record["parameters"] == {"weight_decay": 0.2, "learning_rate": 0.002}
    assert record["state"] == "done"
    assert [trial.value for trial in trials_of(study, optuna_study)] == pytest.approx([1.2, 2.2])
    executed = nbformat.read(study.folder / "trial-001/notebooks/cheap.ipynb", as_version=4)
    assert 'run = "trial-001"' in "".join(cell.source for cell in executed.cells)
    log = (study.folder / "trial-001/trial.log").read_text(encoding="utf-8")
    assert "Executing notebook with kernel: python3" in log
    assert "trial-001: done" in log
    assert (study.folder / "trial-001/notebooks/report.html").exists()


def test_a_failed_trial_is_recorded_with_its_error_and_the_others_run(study_file):
    study, optuna_study = run_worker(study_file(vary={"weight_decay": [0.5, 0.1]}))
    failed, done = trials_of(study, optuna_study)
    assert (failed.state, done.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert "ValueError: weight_decay 0.5 is broken on purpose" in failed.user_attrs["error"]
    assert "weight_decay 0.5 is broken" in (study.folder / "trial-000/trial.log").read_text(encoding="utf-8")
    run = compare("grid").runs[-1]
    assert (run.state, run.error) == ("failed", failed.user_attrs["error"])
    work(study, open_study(study))
    assert count_starts(study.folder) == {"trial-000": 1, "trial-001": 1}, "neither is run again"


def test_a_link_in_place_of_a_trials_log_is_replaced(without_kernels, study_file, write_notebook, runs, tmp_path):
    mine, link = tmp_path / "mine.txt", runs / "grid/trial-000/trial.log"
    mine.write_text("mine")
    link.parent.mkdir(parents=True)
    try:
        link.symlink_to(mine)
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    run_worker(study_file(notebooks=[write_notebook("a.ipynb", 'run = "x"\nseed = 1')], vary={"seed": [1]}))
    assert mine.read_text() == "mine"
    assert "trial-000" in link.read_text(encoding="utf-8")


def test_the_error_of_a_trial_includes_its_explanation(without_kernels, study_file, write_notebook):
    code = "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')"
    notebook = write_notebook("a.ipynb", 'run = "x"\nseed = 1', code)
    study, optuna_study = run_worker(study_file(notebooks=[notebook], vary={"seed": [1]}))
    assert "(T1: " in trials_of(study, optuna_study)[0].user_attrs["error"]


def test_a_trial_without_a_metric_fails(without_kernels, study_file, write_notebook):
    notebook = write_notebook("a.ipynb", 'run = "x"\nseed = 1', "pass")
    study, optuna_study = run_worker(study_file(notebooks=[notebook], vary={"seed": [1]}, optimise="bits_per_byte"))
    assert "left no finite bits_per_byte" in trials_of(study, optuna_study)[0].user_attrs["error"]


@pytest.mark.parametrize("loss", ["NaN", "Infinity"])
def test_a_trial_with_a_non_finite_metric_fails_and_is_not_retried(without_kernels, study_file, write_notebook, loss):
    code = (
        "from helpers.settings import run_folder\n"
        f"(run_folder(run) / 'history.jsonl').write_text('{{\"step\": 1, \"eval_loss\": {loss}}}')"
    )
    notebook = write_notebook("a.ipynb", 'run = "x"\nlearning_rate = 1.0', code)
    study, optuna_study = run_worker(study_file(notebooks=[notebook], vary={"learning_rate": [0.1]}))
    assert len(optuna_study.get_trials()) == 1
    assert "left no finite eval_loss" in trials_of(study, optuna_study)[0].user_attrs["error"]


def test_a_trial_with_unreadable_files_fails_and_the_others_run(without_kernels, study_file, write_notebook):
    code = (
        "from helpers.settings import run_folder\n"
        'row = \'{"step": 1, "eval_loss": 1.0}\'\n'
        "(run_folder(run) / 'history.jsonl').write_text(row[: 9 if learning_rate == 0.1 else None])"
    )
    notebook = write_notebook("a.ipynb", 'run = "x"\nlearning_rate = 1.0', code)
    study, optuna_study = run_worker(study_file(notebooks=[notebook], vary={"learning_rate": [0.1, 0.01]}))
    assert [state_of(trial) for trial in trials_of(study, optuna_study)] == ["failed", "done"]


def test_an_error_of_the_notebook_runner_fails_the_trial_with_its_type(study_file, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr("helpers.studies.trial.run_course", broken)
    study, optuna_study = run_worker(study_file(vary={"learning_rate": [0.001, 0.002]}))
    errors = [trial.user_attrs["error"] for trial in trials_of(study, optuna_study)]
    assert all(error.startswith("RuntimeError: Kernel died before replying") for error in errors)


def test_the_parameters_of_a_trial_are_recorded_before_it_runs(without_kernels, study_file, write_notebook):
    code = CHEAP + '\n(folder / "during.json").write_text((folder / "trial.json").read_text())'
    notebook = write_notebook("a.ipynb", 'run = "x"\nlearning_rate = 1e-3\nweight_decay = 0.01', code)
    study, _ = run_worker(study_file(notebooks=[notebook], vary={"learning_rate": [0.002]}))
    during = json.loads((study.folder / "trial-000/during.json").read_text())
    assert during == {
        "point": 0,
        "optimise": "eval_loss",
        "state": "not finished",
        "parameters": {"learning_rate": 0.002},
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_pauses_the_study_and_the_same_trial_runs_next(without_kernels, study_file, monkeypatch):
    file = study_file(vary={"weight_decay": [0.6, 0.1]})
    with pytest.raises(StudyPausedError, match="the disk is full"):
        run_worker(file)
    monkeypatch.setenv("ROOM", "1")
    study, optuna_study = run_worker(file)
    assert [trial.state for trial in trials_of(study, optuna_study)] == [TrialState.COMPLETE] * 2
    assert count_starts(study.folder) == {"trial-000": 2, "trial-001": 1}


@pytest.mark.parametrize(
    "words",
    [
        "OSError: [Errno 28] No space left on device",
        "OSError: [WinError 112] There is not enough space",
        "SafetensorError: I/O error: Es steht nicht genug Speicherplatz zur Verfügung. (os error 112)",
    ],
)
def test_a_full_disk_is_recognised_on_each_operating_system(study_file, monkeypatch, words):
    def full(*_, **__):
        raise CourseError(f"a.ipynb failed: {words}")

    monkeypatch.setattr("helpers.studies.trial.run_course", full)
    with pytest.raises(StudyPausedError, match="the disk is full"):
        run_worker(study_file())


def test_checkpoints_are_kept_unless_the_study_disables_it(without_kernels, study_file, write_notebook):
    code = (
        "import json; from helpers.settings import run_folder; folder = run_folder(run)\n"
        "(folder / 'checkpoints/checkpoint-1').mkdir(parents=True)\n"
        "(folder.parent / f'{run}-rate/checkpoints').mkdir(parents=True)\n"
        "(folder / 'history.jsonl').write_text(json.dumps({'step': 1, 'eval_loss': 1.0}))"
    )
    notebook = write_notebook("a.ipynb", 'run = "x"\nseed = 1', code)
    for keep in (True, False):
        name = f"kept-{keep}"
        study, _ = run_worker(study_file(study=name, notebooks=[notebook], vary={"seed": [1]}, keep_checkpoints=keep))
        assert (study.folder / "trial-000/checkpoints").exists() == keep
        assert (study.folder / "trial-000-rate/checkpoints").exists() == keep


@pytest.mark.parametrize("with_notebook", [True, False])
def test_a_trial_worse_than_the_median_is_recorded_as_pruned(
    with_notebook, without_kernels, study_file, training_notebook, tiny_settings
):
    notebooks = [training_notebook] if with_notebook else []
    tiny = tiny_settings.model_dump(include={"model_name_or_path", "source", "block_size", "mixed_precision"})
    settings = {**tiny, "per_device_train_batch_size": 4, "eval_steps": 2, "sample_prompt": ""}
    file = study_file(vary={"learning_rate": [0.001]}, settings=settings, notebooks=notebooks, prune=True)
    study = read_study(file)
    optuna_study = open_study(study)
    for _ in range(4):  # the pruner waits for as many finished trials
        others = dict.fromkeys(range(5001), 1.0)
        optuna_study.add_trial(optuna.create_trial(value=1.0, intermediate_values=others))
    work(study, optuna_study)
    assert [trial.state for trial in trials_of(study, optuna_study)] == [TrialState.PRUNED]
    assert compare("grid").runs[0].state == "pruned"
    assert not (study.folder / "trial-000/training.json").exists()


def test_without_notebooks_a_trial_is_the_training_alone(study_file, tiny_settings, capsys):
    tiny = tiny_settings.model_dump(include={"model_name_or_path", "source", "block_size", "mixed_precision"})
    file = study_file(vary={"learning_rate": [0.001]}, settings=tiny, notebooks=[])
    study, optuna_study = run_worker(file)
    assert [trial.state for trial in trials_of(study, optuna_study)] == [TrialState.COMPLETE]
    assert compare("grid").runs[0].settings["learning_rate"] == 0.001
    assert capsys.readouterr().out == "", "a worker prints only why it paused"


@pytest.fixture
def measured(monkeypatch):
    """Make the notebooks of a trial write a finished training run, then fail at a learning rate of 0.1."""

    def run_course(notebooks, *, run, parameters, defaults):
        folder = run_folder(run)
        (folder / "history.jsonl").write_text(json.dumps({"step": 1, "eval_loss": 2.5}))
        (folder / "training.json").write_text("{}")
        if parameters["learning_rate"] == 0.1:
            raise CourseError("no test document is long enough")

    monkeypatch.setattr("helpers.studies.trial.run_course", run_course)


def test_a_trial_measured_before_a_notebook_failed_counts_as_done(study_file, measured):
    study, optuna_study = run_worker(study_file(vary={"learning_rate": [0.1]}))
    assert [trial.value for trial in trials_of(study, optuna_study)] == [2.5]
    assert json.loads((study.folder / "trial-000/trial.json").read_text())["state"] == "done"
    assert "no test document is long enough" in (study.folder / "trial-000/trial.log").read_text(encoding="utf-8")
