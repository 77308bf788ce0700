import gzip
import hashlib
import re
from types import SimpleNamespace

import pytest

from helpers.evaluation import record
from helpers.paths import ASSETS
from helpers.settings import EvaluationSettings, SettingsError
from helpers.sharing import demo_page
from helpers.sharing.demo_page import SAMPLING, card_html, controls, served_page, write_static_page
from tests.command_line import call

EVIL = "<script>alert(1)</script>"


def test_every_control_stays_within_the_bounds_of_the_settings():
    for control in controls(EvaluationSettings(temperature=3, top_k=900), SAMPLING, n_positions=256):
        for value in ("min", "max", "value"):
            EvaluationSettings(**{control["name"]: control[value]})
        assert control["min"] <= control["value"] <= control["max"]


def test_max_new_tokens_leaves_room_for_a_prompt():
    (control,) = controls(EvaluationSettings(max_new_tokens=160), ["max_new_tokens"], n_positions=64)
    assert (control["value"], control["max"]) == (48, 63)


def test_html_in_a_model_card_is_escaped():
    html = card_html(
        f"---\nlicense: mit\n---\n\n# A fox {EVIL}\n\n[x](javascript:alert(1))\n\n| a | b |\n| - | - |\n| 1 | 2 |"
    )
    assert "<h1>A fox &lt;script&gt;" in html
    assert "<td>1</td>" in html
    assert "license" not in html
    assert 'href="javascript' not in html


def test_a_prompt_and_a_note_are_escaped(run, runs, tokenizer):
    sampling = EvaluationSettings(run=run, prompt=EVIL)
    record.write_section(run, "speech", {"settings": sampling.model_dump(), "decodings": []})
    page = served_page(run, ["base", "tuned"], note=EVIL, n_positions=64, tokenizer=tokenizer)
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert") == 2
    (nonce,) = set(re.findall(r"script-src 'nonce-([\w-]+)'", page))
    assert set(re.findall(r"<(?:script|style)[^>]*>", page)) == {
        f'<style nonce="{nonce}">', f'<script type="module" nonce="{nonce}">'
    }  # fmt: skip


def test_the_page_of_a_chat_model_asks_for_a_question(run, runs, tokenizer, chat_tokenizer):
    sampling = EvaluationSettings(run=run, prompt="User: Who drank?\n\nAssistant:")
    record.write_section(run, "speech", {"settings": sampling.model_dump(), "decodings": []})
    page = served_page(run, ["tuned"], note="", n_positions=64, tokenizer=chat_tokenizer)
    assert '<label for="prompt">Question</label>' in page
    assert ">Who drank?</textarea>" in page
    assert '<label for="prompt">Text to continue</label>' in served_page(
        run, ["tuned"], note="", n_positions=64, tokenizer=tokenizer
    )


def test_a_static_page_is_one_self_contained_file(run, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web/other.txt").write_text("kept")
    path = write_static_page(run, tmp_path / "web")
    page = path.read_text(encoding="utf-8")
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "other.txt"]
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)=[\"'](?!#)", without_data.split("<details")[0]) == []
    assert "connect-src blob: data:;" in page
    assert 'id="seed"' not in page


@pytest.fixture
def exported(run, tmp_path, monkeypatch):
    """Pretend that the export already exists."""
    (tmp_path / "model.gguf").write_bytes(bytes(2000))
    export = SimpleNamespace(weights_file=tmp_path / "model.gguf")
    monkeypatch.setattr(demo_page, "export_model", lambda run, **options: export)


def test_a_model_too_large_for_a_page_is_refused_before_it_is_exported(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_page, "_LARGEST_MODEL_BYTES", 1000)
    monkeypatch.setattr(demo_page, "export_model", None)
    with pytest.raises(SettingsError, match=r"a page holds at most .*: use `demo` without --static"):
        write_static_page(run, tmp_path / "web")
    assert not (tmp_path / "web").exists()


def test_a_page_replaces_an_older_one_and_no_other(run, exported, tmp_path):
    path = write_static_page(run, tmp_path)
    assert write_static_page(run, tmp_path) == path
    path.write_text("<h1>My garden</h1>")
    with pytest.raises(SettingsError, match="is not a page of this command: name another folder"):
        write_static_page(run, tmp_path)
    assert path.read_text() == "<h1>My garden</h1>"


def test_an_unusable_folder_gives_one_sentence(run, exported, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("demo", run, "--static", str(tmp_path / "file" / "page"))
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "cannot be used (Not a directory): name another path" in result.output


def test_the_shipped_wllama_files_match_their_documented_hashes():
    table = dict(
        re.findall(r"`(wllama\.\S+)\.gz` .*`([0-9a-f]{64})`", (ASSETS / "wllama/README.md").read_text(encoding="utf-8"))
    )
    assert set(table) == {"wllama.js", "wllama.wasm"}
    for name, digest in table.items():
        content = gzip.decompress((ASSETS / "wllama" / f"{name}.gz").read_bytes())
        assert hashlib.sha256(content).hexdigest() == digest
