import json
import logging
import os
import shutil
import time
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import _http

from helpers.evaluation import compare_with_base, record
from helpers.model import load_model
from helpers.settings import EvaluationSettings, SettingsError
from helpers.sharing.upload import Upload, check_repo_id, copying_verdict, plan_upload, publish
from tests.loopback_hub import Uploads, loopback_hub

# The client passes files to its transport in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    return Uploads(folder)


@pytest.fixture
def api(uploads, monkeypatch):
    """Return the real client, connected to a Hub on this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers are not a part of the Hub's interface
    monkeypatch.setattr(_http, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: None))  # between retries
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with loopback_hub({}, uploads=uploads) as address:
        yield HfApi(endpoint=address, token=uploads.token)


@pytest.fixture
def small_run(run, runs):
    """Return a run with a GGUF file of a few bytes."""
    folder = runs / "tiny/export/gguf-f16"
    folder.mkdir(parents=True)
    for name, content in {"tiny-f16.gguf": b"GGUF", "Modelfile": b"FROM x", "README.md": b"# How to use it"}.items():
        (folder / name).write_bytes(content)
    return run


def test_everything_is_shown_before_it_is_sent(small_run, uploads, api):
    upload = plan_upload(small_run, "me/fables", api=api)
    text = str(upload)
    for name, content in upload.files.items():
        assert f"{content.stat().st_size:,} bytes" in next(line for line in text.splitlines() if f" {name} " in line)
    assert f"{len(upload.files)} files, {upload.n_bytes:,} bytes" in text
    assert "public: everybody can read" in text
    assert "Copying: not measured. Run notebook 4" in text
    assert "Text: text.txt; licence: not known to this course" in text
    assert "Account: me. The repository me/fables is new." in text
    assert "Licence of this model: none named; --license" in text
    assert uploads.commits == {}


def test_model_card_and_gguf_are_uploaded_and_can_be_loaded(small_run, runs, uploads, api):
    compare_with_base(EvaluationSettings(run=small_run, stride=16))
    address = publish(plan_upload(small_run, "me/fables", licence="cc-by-4.0", api=api), api=api)
    assert address.endswith("/me/fables")
    folder = uploads.folder / "fables"
    assert set(uploads.commits["Run tiny"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} | {
        "gguf/Modelfile"
    }
    assert (folder / "gguf/tiny-f16.gguf").read_bytes() == b"GGUF"
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert [result.metric_type for result in card.data.eval_results] == ["perplexity", "bits_per_byte"]
    assert load_model(str(folder)).num_parameters() == load_model(str(runs / "tiny/model")).num_parameters()
    for path in folder.rglob("*.*"):
        assert str(runs).encode() not in path.read_bytes(), "local paths are private"


def test_a_private_repository_is_created_and_stays_private(small_run, uploads, api):
    upload = plan_upload(small_run, "me/fables", private=True, licence="mit", api=api)
    assert "to me/fables (private)" in str(upload)
    assert "Licence of this model: mit." in str(upload)
    publish(upload, api=api)
    assert uploads.private == {"fables"}
    again = plan_upload(small_run, "me/fables", api=api)
    assert again.private
    assert "The repository me/fables exists and stays private" in str(again)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"source": "fables"}, "Text: fables; licence: cc0-1.0."),
        ({"source": "python-reference"}, "licence: those of Python and of the installed packages."),
        ({"model_name_or_path": "pocket"}, "Base model: pocket; licence: mit."),
        ({"model_name_or_path": "nobody/nothing"}, "Base model: nobody/nothing; licence: not known to this course"),
        ({"from_scratch": True}, "Base model: random weights; licence: your own."),
    ],
)
def test_the_licences_of_text_and_base_model_are_named(small_run, runs, api, change, note):
    path = runs / "tiny/settings.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"settings": content["settings"] | change}))
    assert note in str(plan_upload(small_run, "me/fables", api=api))


def test_hidden_files_and_folders_are_not_published(small_run, runs, api):
    for folder in ("model", "export/gguf-f16"):
        (runs / "tiny" / folder / ".env").write_text("TOKEN=secret")
        (runs / "tiny" / folder / "old").mkdir()
    upload = plan_upload(small_run, "me/fables", api=api)
    assert not any(".env" in name or "old" in name for name in upload.files)


@pytest.mark.parametrize("folder", ["model", "export/gguf-f16"])
def test_a_symbolic_link_is_refused(small_run, runs, api, tmp_path, folder):
    (tmp_path / "id_rsa").write_text("secret")
    try:
        (runs / "tiny" / folder / "vocabulary.txt").symlink_to(tmp_path / "id_rsa")
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    with pytest.raises(SettingsError, match=r"vocabulary\.txt is a link to .*id_rsa, whose content would be published"):
        plan_upload(small_run, "me/fables", api=api)


@pytest.mark.parametrize("folder", ["model", "export/gguf-f16"])
def test_a_linked_folder_is_refused(small_run, runs, api, tmp_path, folder):
    try:
        shutil.move(runs / "tiny" / folder, tmp_path / "private")
        (runs / "tiny" / folder).symlink_to(tmp_path / "private", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    with pytest.raises(SettingsError, match=rf"{folder} is a link to .*private, whose content would be published"):
        plan_upload(small_run, "me/fables", api=api)


def test_the_licence_that_the_hub_reports_sends_no_escapes_to_the_terminal():
    upload = Upload("tiny", "me/fables", False, {"README.md": b"# Tiny"}, ("licence: mit\x1b]0;owned\x07\x1b[8m.",))
    assert str(upload).endswith("licence: mit.")


def test_an_outdated_gguf_is_exported_again(small_run, runs, api):
    gguf = runs / "tiny/export/gguf-f16/tiny-f16.gguf"
    os.utime(gguf, (0, 0))
    upload = plan_upload(small_run, "me/fables", api=api)
    assert upload.files["gguf/tiny-f16.gguf"] == gguf
    assert gguf.stat().st_size > 100_000


def test_without_the_gguf_package_the_model_is_shared_without_a_gguf(run, api, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    upload = plan_upload(run, "me/fables", api=api)
    assert not any("gguf" in name for name in upload.files)
    assert "Without a GGUF file: Writing GGUF needs the package gguf" in str(upload)


def test_an_existing_repository_keeps_its_other_files_and_its_visibility(small_run, uploads, api):
    publish(plan_upload(small_run, "me/fables", api=api), api=api)
    (uploads.folder / "fables/notes.txt").write_text("mine")
    upload = plan_upload(small_run, "me/fables", api=api)
    assert "The repository me/fables exists and stays public" in str(upload)
    with pytest.raises(SettingsError, match=r"exists and is public.*choose another name"):
        plan_upload(small_run, "me/fables", private=True, api=api)
    publish(upload, api=api)
    assert (uploads.folder / "fables/notes.txt").read_text(encoding="utf-8") == "mine"


def test_after_a_broken_connection_the_same_call_continues(small_run, uploads, api):
    upload = plan_upload(small_run, "me/fables", api=api)
    uploads.drops = 100  # more than the client's attempts for both large files: nothing is committed
    with pytest.raises(
        SettingsError, match=r"did not accept 'me/fables' .*: check the network, and repeat the command"
    ):
        publish(upload, api=api)
    assert uploads.commits == {}
    uploads.drops = 0
    received = dict(uploads.received)
    publish(upload, api=api)
    assert set(received) <= set(uploads.received)
    assert list(uploads.commits) == ["Run tiny"]
    uploads.drops = 100  # everything is there: nothing large is sent again
    publish(upload, api=api)


def test_a_wrong_token_asks_for_a_login(small_run, uploads, api):
    with pytest.raises(SettingsError, match="log in with `hf auth login`, with a token that has write access"):
        plan_upload(small_run, "me/fables", api=HfApi(endpoint=api.endpoint, token="hf_wrong"))


def test_a_missing_token_asks_for_a_login(small_run, api, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="log in with `hf auth login`"):
        plan_upload(small_run, "me/fables", api=HfApi(endpoint=api.endpoint))


def test_another_owners_name_is_refused(small_run, api):
    with pytest.raises(SettingsError, match="use a name of your own account or organisation"):
        publish(plan_upload(small_run, "others/fables", api=api), api=api)


def test_a_missing_network_is_reported(small_run, api):
    with pytest.raises(SettingsError, match="check the network"):
        plan_upload(small_run, "me/fables", api=HfApi(endpoint="http://127.0.0.1:9", token="hf_right"))


def test_offline_mode_is_reported(small_run):
    with pytest.raises(SettingsError, match="HF_HUB_OFFLINE is set"):
        plan_upload(small_run, "me/fables", api=HfApi(token="hf_right"))


@pytest.mark.parametrize(
    "name", ["fables", "me/my/fables", "me/a--b", "me/ä", "me/-x", "me/x.git", "me/" + 97 * "x", ""]
)
def test_an_invalid_repository_name_is_refused(name):
    with pytest.raises(SettingsError, match=r"is not a name of the Hub .*: use 'owner/name'"):
        check_repo_id(name)


def test_a_run_without_a_model_is_refused(small_run, runs, api):
    (runs / "tiny/model").rename(runs / "tiny/gone")
    with pytest.raises(SettingsError, match="no final model yet"):
        plan_upload(small_run, "me/fables", api=api)


def test_an_unknown_licence_is_refused(small_run, api):
    with pytest.raises(SettingsError, match="'MIT License' is not a licence of the Hub's list"):
        plan_upload(small_run, "me/fables", licence="MIT License", api=api)


@pytest.mark.parametrize(
    ("tokens", "verdict"), [((12, 9), "longer than what real text"), ((9, 9), "no longer than what real text")]
)
def test_the_copying_verdict_compares_with_the_control(run, tokens, verdict):
    rows = [{"text": t, "longest_tokens": n} for t, n in zip(("samples", "held-out text"), tokens, strict=True)]
    record.write_section(run, "copying", {"rows": rows})
    text = copying_verdict(run)
    assert f"in tokens, is {tokens[0]} in samples and {tokens[1]} in held-out text" in text
    assert f": {verdict}" in text
