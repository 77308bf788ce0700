import json

import pytest

from helpers.evaluation import record
from helpers.settings import SettingsError, run_folder

SPEECH = {"settings": {}, "before": "The", "decodings": []}


@pytest.fixture
def folder():
    path = run_folder("some-run")
    path.mkdir(parents=True)
    return path


def test_writing_a_section_keeps_the_others(folder):
    record.write_section("some-run", "published_protocol", [1])
    record.write_section("some-run", "speech", SPEECH)
    record.write_section("some-run", "published_protocol", [3])
    assert record.read("some-run") == {
        "version": 1, "run": "some-run", "test": None, "forgetting": None, "published_protocol": [3],
        "copying": None, "speech": SPEECH,
    }  # fmt: skip


def test_a_section_missing_from_an_older_file_is_none(folder):
    (folder / "evaluation.json").write_text('{"version": 1}')
    assert record.read_section("some-run", "speech") is None


def test_a_nan_metric_is_refused_and_leaves_the_file_unchanged(folder):
    record.write_section("some-run", "published_protocol", [1])
    with pytest.raises(ValueError, match="JSON"):
        record.write_section("some-run", "published_protocol", [float("nan")])
    assert record.read("some-run")["published_protocol"] == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": 1, "run"', r"is damaged \(Expecting"),
        ("[]", r"is damaged \(it is not a JSON object"),
        ('{"test": []}', r"is damaged \(version is missing"),
        ('{"version": 7}', r"is damaged \(version is 7: input should be 1"),
    ],
)
def test_a_damaged_file_or_another_version_is_an_error_until_rewritten(folder, content, words):
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(SettingsError, match=words):
        record.read("some-run")
    record.write_section("some-run", "published_protocol", [1])
    assert json.loads((folder / "evaluation.json").read_text())["published_protocol"] == [1]


def test_an_unevaluated_run_is_an_error():
    with pytest.raises(SettingsError, match="'some-run' has not been evaluated"):
        record.read("some-run")
