from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from helpers import plots

CHAIN = [
    {"link": "card", "status": "ok", "reading": "a card for $300 or $400", "role": "does the work"},
    {"link": "driver", "status": "fail", "reading": "too old " * 30, "role": "speaks to the card"},
    {"link": "wheel", "status": "unknown", "reading": "not asked", "role": "PyTorch"},
]
HISTORY = [
    {"step": 1, "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "loss": 2.0, "learning_rate": 0.05},
    {"step": 2, "eval_loss": 2.5},
]


def drawings(ax=None):
    return [
        plots.plot_history(HISTORY, ax=ax),
        plots.plot_learning_rate(HISTORY, ax=ax),
        plots.plot_lengths([5, 9, 20], block_size=16, ax=ax),
        plots.plot_bars({"a": 1.0, "b": 20.0}, xlabel="tokens", title="b is longer", ax=ax),
        plots.plot_surprise(["The", " $fox", "\n"], {"base": [3.0, 6.0, 0.5]}, ax=ax),
        plots.plot_gain([0.2, -0.1, 0.4], mean=0.2, interval=(0.1, 0.3), ax=ax),
        plots.plot_novelty({"samples": [0.0, 0.5], "held-out text": [0.1, 0.7]}, ax=ax),
    ]


def test_every_plot_has_a_title_and_an_x_label():
    for ax in drawings():
        assert ax.get_title()
        assert ax.get_xlabel()


def test_every_plot_draws_on_the_given_axes():
    ax = plots.new_axes()
    assert all(drawn is ax for drawn in drawings(ax))


def test_the_history_shows_each_loss_at_its_step():
    training, validation = plots.plot_history(HISTORY).get_lines()
    assert training.get_xydata().tolist() == [[1, 3.0], [2, 2.0]]
    assert validation.get_xydata().tolist() == [[2, 2.5]]


@pytest.mark.parametrize("history", ["mine", None, SimpleNamespace(history=HISTORY), ["mine"]])
def test_what_is_given_instead_of_a_history_is_named(history):
    for plot in (plots.plot_history, plots.plot_learning_rate):
        with pytest.raises(TypeError, match=r"has no rows: give a run's, such as open_run\('mine'\)\.history"):
            plot(history)


def test_a_line_of_one_point_is_a_dot():
    lines = plots.plot_history(HISTORY[:1]).get_lines() + plots.plot_learning_rate(HISTORY[:1]).get_lines()
    assert {line.get_marker() for line in lines if len(line.get_xdata())} == {"o"}


def test_the_schedule_of_every_step_shows_the_warm_up():
    line, dots = plots.plot_learning_rate(HISTORY, rates=[0.0, 0.1, 0.05]).get_lines()
    assert line.get_xydata().tolist() == [[1, 0.0], [2, 0.1], [3, 0.05]]
    assert dots.get_linestyle() == "None"


def test_bars_keep_the_given_order_and_show_their_values():
    ax = plots.plot_bars({"first": 1.0, "second": 2.0}, xlabel="x", title="t")
    assert [label.get_text() for label in ax.get_yticklabels()][::-1] == ["first", "second"]
    assert {text.get_text().strip() for text in ax.texts} == {"1", "2"}


def test_the_tuned_bar_has_the_accent_colour_and_values_have_three_digits():
    ax = plots.plot_bars({"base": 261.04, "tuned": 25.637}, xlabel="x", title="t")
    tuned, base = (bar.get_facecolor() for bar in ax.patches)
    assert tuned != base
    assert [text.get_text().strip() for text in ax.texts] == ["25.6", "261"]
    others = plots.plot_bars({"a": 1, "b": 2}, xlabel="x", title="t").patches
    assert others[0].get_facecolor() == others[1].get_facecolor() == base


def test_every_picture_has_alt_text_that_jupyter_uses():
    from IPython.core.formatters import DisplayFormatter

    for ax in drawings():
        data, metadata = DisplayFormatter().format(ax.figure)
        alt = metadata["image/png"]["alt"]
        assert data["text/plain"] == alt
        assert ax.get_title() in alt
        assert ax.get_xlabel() in alt
    bars = plots.plot_bars({"base": 261.04, "tuned": 25.637}, xlabel="perplexity", title="Lower is better")
    assert plots.describe(bars.figure) == "Lower is better. perplexity: base 261, tuned 25.6"
    assert "driver: fail" in plots.describe(plots.plot_chain(CHAIN).figure)


def test_a_line_is_described_by_its_name_and_up_to_five_of_its_values():
    rows = [{"step": step, "loss": 9 - step} for step in range(9)] + [{"step": 8, "eval_loss": 2.5}]
    ax = plots.plot_history(rows)
    ax.axhline(1.0)  # a mark across the picture, not a line of values
    ax.figure.suptitle("step 8 of 8")
    title = "While both fall, the model learns something general. loss (nats per token) against optimizer step"
    lines = "training 9 … 7 … 5 … 3 … 1, validation 2.5"
    assert plots.describe(ax.figure) == f"step 8 of 8 | {title}: {lines}"
    assert plots.describe(plots.plot_learning_rate([], rates=[0.0, 0.5, 0.1]).figure).endswith(": 0 … 0.5 … 0.1")


def test_surprise_is_a_bar_per_token_and_model_and_the_legend_shows_the_perplexity():
    ax = plots.plot_surprise(["The", " fox", "\n"], {"base": [6.0, 6.0, 6.0], "tuned": [3.0, 6.0, 0.0]})
    assert [bar.get_height() for bar in ax.patches] == [6.0, 6.0, 6.0, 3.0, 6.0, 0.0]
    assert ax.patches[0].get_facecolor() != ax.patches[3].get_facecolor()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["The", "\u00b7fox", "\u21b5"]
    assert "perplexity 20.09" in ax.get_legend_handles_labels()[1][1]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("n_tokens", [5, 50, 120])
def test_the_labels_of_many_tokens_do_not_overlap(n_tokens):
    ax = plots.plot_surprise(["<c3>"] * n_tokens, {"base": [1.0] * n_tokens})
    ax.figure.canvas.draw()
    labels = ax.get_xticklabels()
    points_apart = 72 * ax.get_window_extent().width / ax.figure.dpi / (1.1 * n_tokens)  # 1.1: with the margins
    assert labels[0].get_fontsize() < points_apart, "a rotated label is as wide as its font is high"
    assert ax.figure.get_figwidth() <= 12, "a page shrinks a wider picture"


def test_gains_are_sorted_and_losses_have_another_colour():
    ax = plots.plot_gain([0.2, -0.1, 0.4], mean=0.2, interval=(0.1, 0.3))
    bars = ax.patches[:3]
    assert [bar.get_height() for bar in bars] == [0.4, 0.2, -0.1]
    assert bars[0].get_facecolor() == bars[1].get_facecolor() != bars[2].get_facecolor()
    assert len(ax.get_legend_handles_labels()[1]) == 2
    assert len(plots.plot_gain([0.2], mean=0.2, interval=None).get_legend_handles_labels()[1]) == 1


def test_the_interval_label_shows_its_confidence():
    labels = plots.plot_gain([0.2], mean=0.2, interval=(0.1, 0.3), confidence=0.9).get_legend_handles_labels()[1]
    assert labels[1] == "90% interval: 0.10 to 0.30"


def test_novelty_is_one_line_per_text():
    lines = plots.plot_novelty({"samples": [0.0, 0.5], "held-out text": [0.1, 0.7]}).get_lines()
    assert [line.get_xydata().tolist() for line in lines] == [[[1, 0.0], [2, 0.5]], [[1, 0.1], [2, 0.7]]]


def test_missing_values_are_neither_drawn_nor_described():
    ax = plots.plot_novelty({"samples": [0.0, 0.5, None], "held-out text": [None, None, None]})
    assert [line.get_xydata().tolist() for line in ax.get_lines()] == [[[1, 0.0], [2, 0.5]], []]
    assert plots.describe(ax.figure).endswith("share, samples 0 … 0.5, held-out text")


def test_the_chain_shows_every_link_and_names_the_broken_one():
    ax = plots.plot_chain(CHAIN)
    shown = [text.get_text() for text in ax.texts]
    assert ax.get_title() == "The chain breaks at: driver"
    assert {"card: ok", "driver: fail", "wheel: unknown", "does the work"} <= set(shown)
    assert any(text.startswith("too old") and text.endswith("…") for text in shown)
    ax.figure.canvas.draw()  # a dollar sign must not be read as mathematics
    assert plots.plot_chain(CHAIN[:1]).get_title() == "Nothing in the chain is broken"
    no_card = [{**CHAIN[0], "status": "absent"}]
    assert plots.plot_chain(no_card).get_title() == "No card responds: the CPU does the work"


def test_the_live_plot_updates_one_figure_and_ends_with_the_last_state(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(("update", figure))

    def display(figure, display_id):
        shown.append(("display", figure))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(plots, "_DRAW_EVERY_SECONDS", 60)
    live = plots.LivePlot()
    for step in (1, 2, 3):
        live(HISTORY, SimpleNamespace(step=step, max_steps=3))
    assert [kind for kind, _ in shown] == ["display", "update"], "the second call comes too soon"
    assert "step=3" in shown[-1][1]._suptitle.get_text()
    assert plt.get_fignums() == []


def test_slow_drawings_are_updated_less_often(monkeypatch):
    now, shown = [0.0], []

    def display(figure, *, display_id):
        now[0] += 3.0
        shown.append(now[0])
        return SimpleNamespace(update=lambda figure: display(figure, display_id=True))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(plots.time, "monotonic", lambda: now[0])
    live = plots.LivePlot()
    for now[0] in (0.0, 29.0, 30.0):
        live(HISTORY, SimpleNamespace(step=1, max_steps=3))
    assert shown == [3.0, 33.0]


@pytest.mark.parametrize(("chosen", "backend"), [(None, "agg"), ("svg", "svg")])
def test_open_no_windows_sets_agg_unless_a_backend_is_chosen(monkeypatch, chosen, backend):
    backends = []
    monkeypatch.setattr(mpl, "get_backend", lambda *, auto_select: chosen)
    monkeypatch.setattr(mpl, "use", backends.append)
    plots.open_no_windows()
    assert [*backends, chosen][0] == backend
