import numpy as np
import pytest
from datasets import Dataset

from helpers.data import quality_report
from helpers.data.preparation import prepare
from helpers.data.quality_report import plot_packing, plot_report, report, useful_share
from helpers.model import load_tokenizer


@pytest.fixture
def data(tiny_settings):
    return prepare(tiny_settings)


def test_a_report_counts_the_prepared_data(data, tiny_settings):
    described = report(data, load_tokenizer("pocket"))
    assert described.lengths.sum() == data.facts["splits"]["train"]["tokens"]
    n_bytes = [len(text.encode()) for text in data.documents["train"]["text"]]
    assert described.tokens_per_byte.tolist() == pytest.approx((described.lengths / n_bytes).tolist())
    assert sum(described.frequent.values()) <= 1
    assert list(described.frequent.values()) == sorted(described.frequent.values(), reverse=True)
    assert dict(described.rows())["documents read"] == "40"


def test_parts_of_characters_count_as_separate_frequent_tokens():
    tokenizer = load_tokenizer("pocket")
    ids = tokenizer.encode("猫龍")
    assert len(set(ids)) > 2
    rows = Dataset.from_dict({"input_ids": [ids]})
    frequent = quality_report._frequent_tokens(rows, tokenizer)
    assert [share for share in frequent.values() if share] == sorted(np.unique(ids, return_counts=True)[1] / len(ids))[
        ::-1
    ]
    assert "<e7>" in frequent


def test_a_report_escapes_everything_that_comes_from_the_text(data):
    data.facts["encodings"]["<script>"] = 1
    data.facts["notes"].append("<b>bold</b>")
    shown = report(data, load_tokenizer("pocket"))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;b&gt;bold" in shown


def test_a_report_as_text_is_its_table_and_its_notes(data):
    data.facts["notes"].append("The text is short.")
    lines = str(report(data, load_tokenizer("pocket"))).splitlines()
    assert lines[1].split() == ["documents", "read", f"{data.facts['documents_read']:,}"]
    assert lines[-1] == "The text is short."


def test_useful_share_is_text_over_positions():
    assert useful_share([5, 5], 10) == 0.5
    assert useful_share([50, 50], 10) == 1


def test_the_picture_of_packing_is_to_scale_and_shows_padding_and_truncation():
    lengths = [5, 12, 3, 30]
    ax = plot_packing(lengths, block_size=10)
    hatched = [bar for bar in ax.patches if bar.get_hatch()]
    grey, padded = [bar for bar in ax.patches[:10] if bar not in hatched][0::2], ax.patches[1:10]
    assert [bar.get_width() for bar in grey] == [10] * 4
    assert {5, 10, 3} <= {bar.get_width() for bar in padded}
    assert [(bar.get_x(), bar.get_width()) for bar in hatched] == [(10, 2), (10, 20)]
    assert ax.get_xlim()[1] == 30, "the picture must include the truncated text"
    assert sum(bar.get_width() for bar in ax.patches[10:]) == sum(lengths)
    assert "70% of the positions hold text, and 44% of the text is cut off" in ax.get_title()


def test_the_picture_of_a_very_long_document_stays_small():
    ax = plot_packing([10_000_000], block_size=512)
    assert len(ax.patches) < 100
    assert ax.get_xlim()[1] == 3 * 512


def test_the_report_draws_padding_and_truncation_for_each_width(data):
    padding, cut_off = plot_report(report(data, load_tokenizer("pocket")))[1, 0].get_lines()
    assert padding.get_ydata().tolist() == sorted(padding.get_ydata())
    assert cut_off.get_ydata().tolist() == sorted(cut_off.get_ydata(), reverse=True)
    assert cut_off.get_ydata()[-1] == 0, "no document is longer than the widest row"


def test_every_picture_of_the_report_has_a_title_and_an_x_label(data):
    axes = plot_report(report(data, load_tokenizer("pocket"))).ravel()
    assert all(ax.get_title() and ax.get_xlabel() for ax in axes)
    assert all(tick.is_integer() for ax in axes[:2] for tick in ax.get_yticks()), "documents come in whole numbers"
    assert not axes[0].get_legend(), "a legend would cover bars"
    axes[0].figure.canvas.draw()
