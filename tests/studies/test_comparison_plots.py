import json

import pytest

from helpers.studies.comparison import compare
from helpers.studies.comparison_plots import importance, plot_all, plot_curves, plot_importance, plot_parallel


@pytest.fixture
def table(runs):
    """Return twelve trials in which the learning rate decides, the schedule does not."""
    number = 0
    for rate in (1e-4, 1e-3, 1e-2, 5e-2, 1e-1, 5e-1):
        for schedule in ("linear", "cosine"):
            folder = runs / f"study/trial-{number:03d}"
            folder.mkdir(parents=True)
            settings = {"learning_rate": rate, "lr_scheduler_type": schedule, "block_size": 8}
            settings["per_device_train_batch_size"] = 4 if number else 2
            (folder / "settings.json").write_text(json.dumps({"settings": settings, "data_sha256": {"test": "a"}}))
            rows = [{"step": step, "eval_loss": 1 + rate + 0.001 * (schedule == "linear") / step} for step in (1, 2)]
            (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "training.json").write_text("{}" if number == 11 else '{"tokens": 1}')
            (folder / "trial.json").write_text(json.dumps({"state": "done", "optimise": "eval_loss"}))
            number += 1
    return compare("study")


NAMES = ["learning_rate", "lr_scheduler_type"]


def test_curves_are_laid_over_the_tokens_read(table):
    ax = plot_curves(table.groups[0])
    assert ax.get_xlabel() == "training tokens read"
    assert len(ax.lines) == 12
    assert len(ax.get_legend().texts) == 8
    named = {line.get_label(): line for line in ax.lines}
    assert list(named["trial-000"].get_xdata()) == [16, 32]
    assert list(named["trial-001"].get_xdata()) == [32, 64]


def test_the_setting_that_decides_is_the_most_important(table):
    shares = importance(table.groups[0], NAMES, by="eval_loss")
    assert next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    assert "12 runs" in plot_importance(table.groups[0], NAMES, by="eval_loss").get_title()


def test_parallel_lines_run_from_setting_to_figure_and_end_in_the_best(table):
    ax = plot_parallel(table.groups[0], NAMES, by="eval_loss")
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 12
    assert lines[-1].get_color() != lines[0].get_color()
    assert lines[-1].get_ydata()[0] == 0, "the lowest rate"
    assert lines[-1].get_ydata()[-1] == 0, "the lowest loss"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["learning rate", "lr scheduler type", "eval loss"]


def test_pictures_are_drawn_only_where_the_runs_allow_them(table, runs):
    assert len([*plot_all(table)]) == 3
    assert len([*plot_all(compare("study/trial-000"))]) == 1
    (runs / "bare").mkdir()
    (runs / "bare/settings.json").write_text("{}")
    assert [*plot_all(compare("bare"))] == []
