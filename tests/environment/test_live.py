"""The live monitor: readings of a card and of a plain computer, their history, and the thread that keeps reading."""

import os
import re
import threading
import time

import pytest

from helpers.display import GIB
from helpers.environment import live
from helpers.environment.facts import GpuReading, Holder, Memory, Nvml
from helpers.environment.live import Monitor, Sample, monitor, sample, sparkline

EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J\n"
CARD = GpuReading(
    0,
    "NVIDIA GeForce RTX 4070 Ti",
    total_bytes=12 * GIB,
    free_bytes=9 * GIB,
    utilisation_percent=37,
    power_watts=120.5,
    power_limit_watts=285.0,
    temperature_celsius=45,
    holders=(Holder(17, "python", GIB), Holder(18, EVIL, None)),
)


@pytest.fixture
def nvml(monkeypatch):
    """Return the answers that NVML gives one after the other; the last one repeats."""
    answers = [Nvml("absent")]
    monkeypatch.setattr(live, "read_nvml", lambda *_: answers.pop(0) if len(answers) > 1 else answers[0])
    return answers


def reading(seconds, **changes):
    plain = {"name": "CPU, 4 threads", "total_bytes": 8 * GIB, "free_bytes": 6 * GIB}
    return Sample(seconds, "cpu", GpuReading(0, **{**plain, **changes}))


def evil_reading(name, *holders):
    return Sample(0.0, "gpu", GpuReading(0, name, total_bytes=2 * GIB, free_bytes=GIB, holders=holders))


def watching(*samples, length=60):
    """Return a monitor that has read these samples."""
    left = iter(samples)
    monitor = Monitor(lambda **_: next(left), interval_seconds=1, length=length)
    for _ in samples[1:]:
        monitor.update()
    return monitor


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "monitor"]


def wait_for(what):
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    return what()


class TestSample:
    def test_a_computer_without_a_card_shows_its_memory_and_load(self, nvml, monkeypatch):
        new = sample(seconds=2.5)
        assert (new.seconds, new.device) == (2.5, "cpu")
        assert re.fullmatch(r"CPU, (1 thread|\d+ threads)", new.reading.name)
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        assert sample().reading.name == "CPU, 1 thread"
        assert 0 < new.reading.free_bytes < new.reading.total_bytes
        assert 0 <= new.reading.utilisation_percent <= 100
        assert new.reading.power_watts is new.reading.temperature_celsius is None
        assert new.reading.holders == ()

    def test_a_card_shows_what_it_reports(self, nvml):
        nvml[:] = [Nvml("ok", driver="580.1", cards=(CARD,))]
        new = sample()
        assert (new.device, new.reading) == ("gpu", CARD)
        assert new.row()["memory_gib"] == 3.0
        assert str(watching(new)).splitlines() == [
            "NVIDIA GeForce RTX 4070 Ti",
            "  memory      3.0 of 12.0 GiB     ▃",
            "  load        37 %                ▄",
            "  power       120.5 of 285.0 W    ▄",
            "  temperature 45 °C               ▄",
            "  process 17        1.0 GiB   python",
            "  process 18                  <script>alert(1)</script> ",
        ]

    @pytest.mark.parametrize(("visible", "name"), [(None, "fast"), ("1", "large"), ("GPU-aa", "large"), ("", "fast")])
    def test_the_card_that_training_would_use_is_shown(self, nvml, monkeypatch, visible, name):
        cards = (
            GpuReading(0, "large", "GPU-aa", total_bytes=24 * GIB, capability=(8, 6)),
            GpuReading(1, "lost", error="GPU is lost"),
            GpuReading(2, "fast", "GPU-bb", total_bytes=12 * GIB, capability=(8, 9)),
        )
        nvml[:] = [Nvml("ok", driver="580.1", cards=cards)]
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert sample().reading.name == name

    def test_a_card_that_does_not_report_free_memory_is_not_shown_as_full(self, nvml):
        nvml[:] = [Nvml("ok", driver="580.1", cards=(GpuReading(0, "card", total_bytes=12 * GIB),))]
        new = sample()
        assert new.row()["memory_gib"] is None
        assert str(watching(new)) == "card"
        assert watching(new)._repr_mimebundle_()["text/html"].endswith(">card</pre>")

    def test_a_card_that_reported_its_memory_before_nvml_crashed_is_shown(self, nvml):
        nvml[:] = [Nvml("crashed", "ended by SIGSEGV", "580.1", cards=(CARD,))]
        assert sample().device == "gpu"

    def test_use_gpu_false_does_not_ask_nvml(self, monkeypatch):
        monkeypatch.setattr(live, "read_nvml", lambda *_: pytest.fail("NVML was asked"))
        assert sample(use_gpu=False).device == "cpu"

    def test_without_a_card_the_systems_memory_is_shown(self, nvml, monkeypatch):
        monkeypatch.setattr(live, "read_memory", lambda: Memory(16 * GIB, 12 * GIB))
        assert sample().row()["memory_gib"] == 4.0
        assert "4.0 of 16.0 GiB" in str(watching(sample()))

    def test_a_row_contains_only_numbers(self):
        assert reading(1.0, utilisation_percent=5.0).row() == {
            "seconds": 1.0,
            "memory_gib": 2.0,
            "utilisation_percent": 5.0,
            "power_watts": None,
            "temperature_celsius": None,
        }


class TestHistory:
    def test_it_keeps_the_last_samples_oldest_first(self):
        kept = watching(*(reading(float(second)) for second in range(10)), length=3)
        assert [row["seconds"] for row in kept.rows()] == [7.0, 8.0, 9.0]

    @pytest.mark.parametrize(
        ("values", "highest", "line"),
        [
            ([], 10, ""),
            ([0, 10], 10, "▁█"),
            ([-5, 25], 10, "▁█"),  # values out of bounds are clipped
            ([0.0] * 3, 100, "▁▁▁"),
        ],
    )
    def test_bars_stay_within_their_bounds(self, values, highest, line):
        assert sparkline(values, highest) == line


class TestText:
    def test_text_shows_only_known_values(self):
        shown = str(watching(reading(0.0), reading(1.0, utilisation_percent=50.0)))
        assert shown.splitlines() == [
            "CPU, 4 threads",
            "  memory      2.0 of 8.0 GiB      ▃▃",
            "  load        50 %                ▅",
        ]

    def test_the_number_of_bars_is_the_width(self):
        assert len(re.findall("▃", watching(*[reading(0.0)] * 9).text(width=4))) == 4

    def test_power_without_a_limit_is_compared_with_the_highest_value(self):
        shown = str(watching(reading(0.0, power_watts=50.0), reading(1.0, power_watts=25.0)))
        assert shown.splitlines()[-1] == "  power       25.0 of 50.0 W      █▅"

    def test_text_contains_no_control_characters(self):
        shown = str(watching(evil_reading(f"card{EVIL}", Holder(18, EVIL), Holder(17, "python", GIB))))
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
        assert len(shown.splitlines()) == 4  # the name adds no line
        assert "  process 17        1.0 GiB   python" in shown

    def test_names_are_escaped_in_html(self):
        shown = watching(evil_reading("<b>card</b>", Holder(18, "<script>'&\"")))._repr_mimebundle_()["text/html"]
        assert "<script" not in shown
        assert "<b>card" not in shown
        assert "&lt;b&gt;card&lt;/b&gt;" in shown
        assert "process 18                  &lt;script&gt;&#x27;&amp;&quot;" in shown

    def test_every_quantity_has_a_line_and_higher_is_up(self):
        samples = [
            reading(t, free_bytes=(8 - t) * GIB, utilisation_percent=9.0, power_watts=8.0, temperature_celsius=7)
            for t in (0, 4, 8)
        ]
        lines = str(watching(*samples)).splitlines()[1:]
        assert [line.split()[0] for line in lines] == ["memory", "load", "power", "temperature"]
        assert lines[0].endswith(" ▁▅█")


class TestMonitor:
    def test_a_new_monitor_has_one_reading(self):
        shown = Monitor(lambda **options: reading(**{"seconds": options["seconds"]}), interval_seconds=1, length=5)
        assert len(shown.samples) == 1
        assert str(shown).startswith("CPU, 4 threads")

    def test_a_card_that_stops_answering_is_not_asked_again(self, monkeypatch):
        answers = [Nvml("ok", driver="580.1", cards=(CARD,)), Nvml("hung", "no answer within 5 s")]
        calls = []
        monkeypatch.setattr(live, "read_nvml", lambda *_: calls.append(1) or answers.pop(0))
        shown = Monitor(sample, interval_seconds=1, length=9)
        assert [shown.update().device for _ in range(3)] == ["cpu", "cpu", "cpu"]
        assert [each.device for each in shown.samples] == ["gpu", "cpu", "cpu", "cpu"]
        assert len(calls) == 2
        assert "CPU" in str(shown)

    def test_time_counts_from_its_creation(self, nvml):
        shown = monitor()
        time.sleep(0.02)
        shown.update()
        first, second = (row["seconds"] for row in shown.rows())
        assert 0 <= first < first + 0.02 <= second

    def test_it_keeps_reading_until_stopped_and_leaves_no_thread(self):
        pytest.importorskip("ipywidgets")
        shown = Monitor(lambda *, seconds, use_gpu: reading(seconds), interval_seconds=0.01, length=100)
        shown.start()
        assert wait_for(lambda: len(shown.samples) > 3)
        assert len(threads()) == 1
        shown.stop()
        assert threads() == []
        read = len(shown.samples)
        time.sleep(0.05)
        assert len(shown.samples) == read
        assert shown._widget.value.startswith("<pre")

    def test_it_stops_after_the_given_seconds(self):
        pytest.importorskip("ipywidgets")
        shown = Monitor(lambda *, seconds, use_gpu: reading(seconds), interval_seconds=0.01, length=100)
        shown.start(0.05)
        assert wait_for(lambda: not threads())
        assert len(shown.samples) > 1

    def test_starting_twice_uses_one_thread_and_it_can_be_restarted(self):
        pytest.importorskip("ipywidgets")
        shown = Monitor(lambda *, seconds, use_gpu: reading(seconds), interval_seconds=0.01, length=1000)
        shown.start()
        shown.start()
        assert len(threads()) == 1
        shown.stop()
        read = len(shown.samples)
        shown.start()
        assert wait_for(lambda: len(shown.samples) > read)
        shown.stop()
        assert threads() == []

    def test_stopping_before_starting_does_nothing(self):
        shown = Monitor(lambda *, seconds, use_gpu: reading(seconds), interval_seconds=1, length=1)
        shown.stop()
        assert threads() == []

    def test_without_a_front_end_it_shows_one_reading(self, nvml):
        shown = monitor()
        assert threads() == []
        bundle = shown._repr_mimebundle_()
        assert set(bundle) == {"text/html", "text/plain"}
        assert "memory" in bundle["text/html"]

    def test_with_a_front_end_it_is_a_widget_with_text_for_saved_notebooks(self, nvml, monkeypatch):
        pytest.importorskip("ipywidgets")
        monkeypatch.setattr(live, "allows_input", lambda kernel: True)
        shown = monitor(interval_seconds=0.01, seconds=5)
        try:
            data, _ = shown._repr_mimebundle_()
        finally:
            shown.stop()
        assert "application/vnd.jupyter.widget-view+json" in data
        assert "memory" in data["text/html"]
        assert data["text/plain"].startswith("CPU")

    def test_rerunning_a_cell_replaces_its_monitor(self, nvml, monkeypatch):
        pytest.importorskip("ipywidgets")
        monkeypatch.setattr(live, "allows_input", lambda kernel: True)
        monitor(interval_seconds=0.01)
        newest = monitor(interval_seconds=0.01)
        try:
            assert len(threads()) == 1
        finally:
            newest.stop()
        assert threads() == []

    @pytest.mark.parametrize("allowed", [True, False])
    def test_a_front_end_is_recognised_by_allowing_input(self, nvml, monkeypatch, allowed):
        pytest.importorskip("ipywidgets")
        kernel = type("Kernel", (), {"_allow_stdin": allowed})()
        monkeypatch.setattr("IPython.get_ipython", lambda: type("Shell", (), {"kernel": kernel})())
        shown = monitor()
        shown.stop()
        assert ("application/vnd.jupyter.widget-view+json" in str(shown._repr_mimebundle_())) is allowed

    @pytest.mark.parametrize("value", [0, -1.0, float("nan")])
    def test_an_invalid_interval_is_refused(self, value):
        with pytest.raises(ValueError, match=f"interval_seconds = {value} is not allowed: it must be above 0"):
            monitor(interval_seconds=value)
