from helpers.training import fine_tuning as training
from tests.command_line import call


def test_a_broken_training_run_gives_one_sentence_and_exit_code_1(monkeypatch):
    def fail(*_, **__):
        raise training.TrainingBrokenError("the loss is exactly 0")

    monkeypatch.setattr(training, "fine_tune", fail)
    result = call("train")
    assert (result.exit_code, result.output) == (1, "Error: the loss is exactly 0\n")


def test_train_prints_the_finished_run(monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda settings, progress: f"{settings.run} {settings.num_train_epochs}")
    result = call("train", "--run", "mine", "-p", "num_train_epochs", "2")
    assert (result.exit_code, result.output) == (0, "mine 2.0\n")


def test_only_the_first_of_several_training_processes_prints(monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda settings, progress: settings.run)
    monkeypatch.setenv("RANK", "1")
    assert call("train").output == ""
