import pytest

from helpers.settings import SettingsError
from helpers.sharing import export, upload
from tests.command_line import call


def test_export_prints_the_folder_and_the_perplexity(run, runs):
    result = call("export", run, "--to", "safetensors-fp16")
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.output
    assert str(runs / "tiny/export/safetensors-fp16/README.md") in result.output


def test_the_help_of_export_names_each_format():
    shown = call("export", "--help").output
    assert [name for name in (*export.FORMATS, *export.TYPES) if name not in shown] == []


def test_demo_writes_a_static_page(run, tmp_path):
    result = call("demo", run, "--static", str(tmp_path / "web"))
    assert result.exit_code == 0, result.output
    assert "MB. Open it in a browser" in result.output
    assert (tmp_path / "web/index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nothing"], "There is no run 'nothing'"),
        (["demo", "nothing"], "There is no run 'nothing'"),
        (["share", "nothing", "me/x"], "There is no run 'nothing'"),
        (["share", "nothing", "x"], "the owner is missing"),
        (["export", "../x"], "not a plain name"),
        (["export", "rates/trial-003"], "compare rates/trial-003 --promote NAME` turns it into a run"),
    ],
)
def test_a_usage_error_gives_one_sentence_and_exit_code_2(arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert words in result.output


@pytest.fixture
def published(monkeypatch):
    """Record what is published."""
    sent = []
    monkeypatch.setattr(upload, "plan_upload", lambda *arguments, **options: (arguments, options))
    monkeypatch.setattr(upload, "publish", lambda plan: sent.append(plan) or "https://hub/me/x")
    return sent


def test_share_asks_and_sends_only_after_yes(published):
    assert "Nothing was sent." in call("share", "tiny", "me/x", input="n\n").output
    assert published == []
    assert "https://hub/me/x" in call("share", "tiny", "me/x", "--private", "--license", "mit", input="y\n").output
    assert published == [(("tiny", "me/x"), {"private": True, "licence": "mit"})]
    assert call("share", "tiny", "me/x", "--yes").exit_code == 0
    assert len(published) == 2


def test_an_interrupt_at_the_question_sends_nothing_and_gives_exit_code_130(published, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    result = call("share", "tiny", "me/x")
    assert (result.exit_code, published) == (130, [])
    assert "Interrupted" in result.output


def test_a_failed_export_gives_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise SettingsError("The disk is full.")

    monkeypatch.setattr(export, "export_model", fail)
    assert call("export", "tiny").output == "Error: The disk is full.\n"
