import io

import psutil
import pytest

from helpers.studies.queue import open_study
from helpers.studies.study_file import read_study
from helpers.studies.supervise import standing, supervise


class DyingWorker:
    """A worker that settles a trial, if it is to, and dies; it ends well when there is nothing left."""

    def __init__(self, study, opened, *, settles):
        self.stdin, self.stdout = io.StringIO(), io.StringIO()
        if settles and standing(study, opened).n_left:
            opened.tell(opened.ask(), 1.0)
        self.returncode = -9 if standing(study, opened).n_left else 0

    def poll(self):
        return self.returncode


@pytest.fixture
def supervised(study_file, monkeypatch):
    """Return a function that supervises workers of that kind at six trials; it returns the standing and the reasons."""

    def run(*, settles):
        file = study_file(vary={"learning_rate": [n / 1000 for n in range(1, 7)]})
        study = read_study(file)
        opened = open_study(study)
        monkeypatch.setattr("helpers.studies.supervise._REFRESH_SECONDS", 0)
        monkeypatch.setattr("helpers.studies.supervise._start", lambda *_: DyingWorker(study, opened, settles=settles))
        reasons = supervise(study, file, opened, workers=1, show=lambda _: None)
        return standing(study, opened), reasons

    return run


def test_deaths_with_settled_trials_between_them_do_not_add_up(supervised):
    stand, reasons = supervised(settles=True)
    assert (stand.count("done"), reasons) == (6, [])


def test_workers_that_die_and_settle_nothing_are_given_up(supervised):
    stand, reasons = supervised(settles=False)
    assert stand.n_left == 6
    assert "ended with code -9 again and again" in reasons[0]


@pytest.mark.parametrize("asked", [None, "7"])
def test_workers_share_out_the_cores_unless_told_otherwise(study_file, monkeypatch, asked):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    file = study_file(vary={"learning_rate": [0.001, 0.002]})
    study = read_study(file)
    opened = open_study(study)
    threads = []

    def start(*arguments):
        threads.append(arguments[-1]["OMP_NUM_THREADS"])
        return DyingWorker(study, opened, settles=True)

    monkeypatch.setattr("helpers.studies.supervise._start", start)
    supervise(study, file, opened, workers=2, show=lambda _: None)
    assert set(threads) == {asked or str(max(1, psutil.cpu_count(logical=False) // 2))}
