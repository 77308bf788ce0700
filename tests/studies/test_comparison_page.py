import json
from types import SimpleNamespace

import pytest

from helpers.studies.comparison import compare
from helpers.studies.comparison_page import (
    importance,
    plot_all,
    plot_curves,
    plot_importance,
    plot_parallel,
    write_page,
)
from tests.studies.recorded_runs import write_trials


@pytest.fixture
def table(runs):
    """Return twelve trials whose loss depends on the learning rate and hardly on the schedule."""
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


def test_curves_are_drawn_over_the_tokens_read(table):
    ax = plot_curves(table.groups[0])
    assert ax.get_xlabel() == "training tokens read"
    assert len(ax.lines) == 12
    assert len(ax.get_legend().texts) == 8
    named = {line.get_label(): line for line in ax.lines}
    assert list(named["trial-000"].get_xdata()) == [16, 32]
    assert list(named["trial-001"].get_xdata()) == [32, 64]


def test_the_setting_that_determines_the_loss_is_the_most_important(table):
    shares = importance(table.groups[0], NAMES, by="eval_loss")
    assert next(iter(shares)) == "learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    assert "12 runs" in plot_importance(table.groups[0], NAMES, by="eval_loss").get_title()


@pytest.mark.parametrize(("n_runs", "is_drawn"), [(4, False), (5, True)])
def test_importance_needs_more_than_one_run_in_the_best_quarter(table, n_runs, is_drawn):
    few = SimpleNamespace(groups=[table.groups[0][:n_runs]], by="eval_loss", differing=NAMES)
    assert ("How much each setting decides" in [alt for alt, _ in plot_all(few)]) is is_drawn


def test_parallel_coordinates_show_metric_and_settings_and_highlight_the_best(table):
    ax = plot_parallel(table.groups[0], NAMES, by="eval_loss")
    (best,) = ax.lines
    lines = ax.collections[0]
    assert len(lines.get_segments()) == 12
    metric, rate, _ = best.get_ydata()
    assert metric == min(segment[0, 1] for segment in lines.get_segments()) == table.best[0].eval_loss
    assert rate == ax.get_ylim()[0], "the lowest rate"
    assert lines.get_clim()[1] > lines.get_array().max(), "the worst line is not white"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["eval loss", "learning_rate", "lr_scheduler_type"]
    alt = ax.figure._repr_mimebundle_()[1]["image/png"]["alt"]
    assert alt == f"Each line a run; the orange one is the best: study/trial-001, eval loss {metric:.4g}"


def test_the_colours_of_two_curves_differ_clearly(table):
    red, green, blue = zip(*(line.get_color()[:3] for line in plot_curves(table.groups[0][:2]).lines), strict=True)
    assert max(abs(a - b) for a, b in (red, green, blue)) > 0.3


def test_pictures_without_enough_runs_are_left_out(table, runs):
    assert len([*plot_all(table)]) == 3
    assert len([*plot_all(compare("study/trial-000"))]) == 1
    (runs / "bare").mkdir()
    (runs / "bare/settings.json").write_text("{}")
    assert [*plot_all(compare("bare"))] == []


def test_the_page_contains_the_pictures_and_loads_nothing_from_the_network(runs, tmp_path):
    write_trials(runs)
    write_page(compare("rates"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img alt=") == 2
    assert 'src="http' not in page
    assert "<script" not in page
