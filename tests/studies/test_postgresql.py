"""Studies in a real PostgreSQL server, started for these tests and stopped after them."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from helpers.studies.queue import open_study, requeue_interrupted
from helpers.studies.study_file import read_study
from tests.studies.conftest import count_starts, finish, sweep, wait_until

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
INITDB = shutil.which("initdb") or next((str(path / "initdb") for path in reversed(INSTALLED)), None)

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def server():
    """Return the address of a server for these tests; it runs as an unprivileged user, as PostgreSQL requires.

    Without PostgreSQL the tests are skipped, but in CI they fail.
    """
    if INITDB is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no initdb: `apt-get install postgresql`")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install '.[postgres]'")
    user = {"user": "nobody", "group": "nogroup"} if os.name == "posix" and os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has at most 107 characters
    if user:
        shutil.chown(folder, user["user"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder = Path(INITDB).resolve().parent

    def call(program, *arguments):
        command = [bin_folder / program, "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)

    call("initdb", "--auth=trust", "--username=course", "--no-sync")
    call("pg_ctl", "-w", "-l", folder / "log", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -F", "start")
    yield f"postgresql+psycopg://course@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def opened_study():
    """Return `open_study`, and close its connections afterwards."""
    optuna_study = []
    yield lambda study: optuna_study.append(open_study(study)) or optuna_study[-1]
    for one in optuna_study:
        one._storage.remove_session()
        one._storage._backend.engine.dispose()


def test_two_commands_share_a_study_and_one_is_killed(study_file, server, runs, monkeypatch):
    monkeypatch.setenv("NAP", "1")
    file = study_file(study="shared", storage=server, vary={"learning_rate": [0.001, 0.002]})
    first, second = sweep(file), sweep(file)
    wait_until(lambda: len(count_starts(runs / "shared")) >= 2)
    second.kill()
    second.communicate()
    code, output = finish(first)
    assert code == 0, output
    assert "2 done, 0 running of 2" in output
    counts = count_starts(runs / "shared")
    assert sorted(counts) == ["trial-000", "trial-001"]
    assert sum(counts.values()) <= 3, "only an interrupted trial starts again"
    assert not (runs / "shared/study.log").exists()


def test_a_trial_running_on_another_machine_is_not_requeued(study_file, server, opened_study):
    study = read_study(study_file(study="elsewhere", storage=server))
    optuna_study = opened_study(study)
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = optuna_study.ask()
    trial.set_user_attr("worker", "another-machine:/its/runs/elsewhere")
    requeue_interrupted(study, optuna_study)
    assert optuna_study.get_trials()[0].state.name == "RUNNING", (
        "a lock that is free here says nothing about another machine"
    )


def test_a_trial_of_a_machine_without_heartbeats_is_requeued(study_file, server, opened_study, monkeypatch):
    monkeypatch.setattr("helpers.training.study_storage.HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr("helpers.training.study_storage.GRACE_SECONDS", 2)
    study = read_study(study_file(study="silent", storage=server, vary={"learning_rate": [0.001]}))
    optuna_study = opened_study(study)
    with pytest.warns(UserWarning, match="Heartbeat"):
        running = optuna_study.ask()
    running.set_user_attr("worker", "another-machine:/its/runs/silent")
    optuna_study._storage.record_heartbeat(running._trial_id)  # the last one

    def is_queued_again():
        requeue_interrupted(study, optuna_study)
        return [trial.state.name for trial in optuna_study.get_trials()] == ["FAIL", "WAITING"]

    assert not is_queued_again()
    wait_until(is_queued_again, seconds=20)
