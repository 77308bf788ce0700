"""The data panel: what padding wastes, the documents of each split, and a source that is read in the background."""

import threading

import pytest

from helpers.data.in_memory import load_documents, split_documents
from helpers.settings import DataSettings
from helpers.widgets import DataPanel, data_panel
from helpers.widgets.data_panel import split_sizes


def read_panel(settings):
    """Return a panel that has read its source."""
    panel = DataPanel(settings)
    panel.thread.join()
    return panel


def test_counts_what_padding_wastes():
    panel = read_panel(DataSettings())
    assert panel.settings == DataSettings()
    panel.controls["block_size"].value = 512
    assert "padded to 512" in panel.gauge.value
    assert f"{len(load_documents(DataSettings())['train'])} documents" in panel.gauge.value
    assert "padded to 512" in panel.static_html()


def test_is_shown_before_its_source_is_read_and_reads_it_only_once(monkeypatch):
    is_allowed, calls = threading.Event(), []

    def count(settings):
        calls.append(settings)
        is_allowed.wait()
        return data_panel.Beginning([10], {"train": 1})

    monkeypatch.setattr(data_panel, "read_beginning", count)
    panel = DataPanel(DataSettings())
    assert "Reading the source" in panel.gauge.value
    panel.controls["block_size"].value = 512
    assert "Reading the source" in panel.gauge.value
    is_allowed.set()
    assert "padded to 512" in panel.static_html(), "a page without a kernel waits for it"
    assert len(calls) == 1


def test_moving_a_slider_reads_the_source_only_for_its_last_value(monkeypatch):
    is_allowed, calls = threading.Event(), []

    def count(settings):
        calls.append(settings.vocab_size)
        is_allowed.wait()
        return data_panel.Beginning([settings.vocab_size], {"train": 1})

    monkeypatch.setattr(data_panel, "read_beginning", count)
    panel = DataPanel(DataSettings())
    for size in panel.controls["vocab_size"].options[:4]:
        panel.controls["vocab_size"].value = size
    first = panel.thread
    is_allowed.set()
    first.join()
    panel.thread.join()
    assert calls == [4096, size]
    assert "packed, as here" in panel.gauge.value


def test_the_end_of_reading_does_not_show_values_that_have_changed_meanwhile(monkeypatch):
    is_slow, old_shares = threading.Event(), data_panel.shares_html

    def shares(beginning, settings):
        if threading.current_thread() is not threading.main_thread():
            is_slow.set()
            threading.Event().wait(1)  # the other thread would be ready by then
        return old_shares(beginning, settings)

    monkeypatch.setattr(data_panel, "shares_html", shares)
    panel = DataPanel(DataSettings())
    assert is_slow.wait(60)
    panel.controls["block_size"].set_state({"value": 512})
    panel.thread.join()
    assert "padded to 512" in panel.gauge.value


def test_reads_another_source_in_the_background_and_once(text_file):
    panel = read_panel(DataSettings())
    panel.controls["source"].value = str(text_file)
    panel.thread.join()
    assert "40 documents" in panel.gauge.value
    panel.controls["source"].value = "fables"
    thread = panel.thread
    panel.controls["source"].value = str(text_file)
    assert panel.thread is thread
    assert "40 documents" in panel.gauge.value


def test_a_missing_source_is_explained_and_escaped(markup):
    panel = read_panel(DataSettings())
    panel.controls["source"].value = f"{markup}.txt"
    panel.thread.join()
    assert "is not there" in panel._message.value
    assert "<script" not in panel._message.value
    assert panel.gauge.value == ""
    assert "is not there" in DataPanel(DataSettings(source="missing.txt")).static_html()


def test_an_unexpected_error_is_shown_too(monkeypatch):
    def fail(settings):
        raise RuntimeError("no tokenizer & no text")

    monkeypatch.setattr(data_panel, "read_beginning", fail)
    panel = read_panel(DataSettings())
    assert "RuntimeError: no tokenizer &amp; no text" in panel._message.value
    assert "RuntimeError: no tokenizer &amp; no text" in panel.static_html()


def test_only_the_first_documents_of_a_large_source_are_read(tmp_path):
    large = tmp_path / "large.txt"
    large.write_text("\n\n".join(f"Document {number} of many." for number in range(2100)))
    assert "From the first 2,000 documents" in read_panel(DataSettings(source=str(large))).gauge.value


def test_split_sizes_match_the_data_package(text_file):
    settings = DataSettings(source=str(text_file), validation_share=0.3, test_share=0.05)
    parts, _ = split_documents(load_documents(settings), settings)
    assert split_sizes({"train": 40}, settings) == {name: len(part) for name, part in parts.items()}


@pytest.mark.parametrize("own", [("train", "test"), ("train", "valid"), ("train", "valid", "test")])
def test_keeps_a_sources_own_splits_like_the_data_package(tmp_path, own):
    for name in own:
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"Document {number} of {name}." for number in range(30)))
    settings = DataSettings(source=str(tmp_path), test_share=0.2, near_duplicates="keep")
    documents = load_documents(settings)
    parts, _ = split_documents(documents, settings)
    sizes = split_sizes({name: len(part) for name, part in documents.items()}, settings)
    assert sizes == {name: len(part) for name, part in parts.items()}
    assert ", ".join(f"{name} {n}" for name, n in sizes.items()) in read_panel(settings).gauge.value


def test_the_first_three_documents_are_shown_and_change_with_the_separator(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"<b>Tale</b> {n}.\nIt ends.\n\n" for n in range(9)))
    panel = read_panel(DataSettings(source=str(path)))
    assert "&#x27;blank line&#x27; (auto, because there are 9 blocks" in panel.gauge.value
    assert panel.gauge.value.count("<li>") == 3
    assert "&lt;b&gt;Tale&lt;/b&gt; 0.\nIt ends.</span>" in panel.gauge.value
    panel.controls["document_separator"].value = "row"
    panel.thread.join()
    assert "&lt;b&gt;Tale&lt;/b&gt; 0.</span>" in panel.gauge.value
    panel.controls["document_separator"].value = "rows"
    assert "is not a value" in panel._message.value


def test_a_missing_source_is_looked_for_again(text_file):
    moved = text_file.rename(text_file.with_name("moved.txt"))
    panel = read_panel(DataSettings(source=str(text_file)))
    assert "is not there" in panel._message.value
    moved.rename(text_file)
    panel.controls["block_size"].value = 512
    panel.thread.join()
    assert "40 documents" in panel.gauge.value
