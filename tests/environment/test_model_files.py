"""A model folder, complete or damaged in every way that a download or a copy can damage it."""

import json
import shutil
import struct
import sys

import pytest

from helpers.environment.model_files import inspect, read_model_files
from helpers.paths import ROOT

POCKET = ROOT / "helpers" / "assets" / "pocket"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the folder of a complete model: the pocket model's own tokenizer, and weights with one row per token."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(POCKET / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4096, "n_positions": 64, "eos_token_id": 4095}))
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "transformer.wte.weight": {"dtype": "F32", "shape": [4096, 2], "data_offsets": [0, 32768]},
            "transformer.wpe.weight": {"dtype": "F32", "shape": [64, 2], "data_offsets": [32768, 33280]},
        }
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(33280))
    return folder


@pytest.fixture
def model(small, tmp_path):
    """Return a copy to damage."""
    return shutil.copytree(small, tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values))


def test_a_complete_model_has_no_problems(model):
    result = inspect(model)
    assert (result.path, result.problems, result.tokens, result.positions) == (str(model), (), 4096, 64)
    assert result.bytes == (model / "model.safetensors").stat().st_size


def test_the_shipped_model_is_complete(make_access):
    result = read_model_files(make_access(project=ROOT)).pocket
    assert (result.problems, result.tokens, result.positions) == ((), 4096, 256)


def test_a_missing_folder_is_reported(tmp_path):
    assert inspect(tmp_path / "none").problems == ("the folder is missing",)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    assert f"{name} is missing" in inspect(model).problems


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\xff\xfe", b"[]", b'"text"', b"null", b"{"])
def test_a_file_with_invalid_content_is_named(model, name, content):
    (model / name).write_bytes(content)
    problems = inspect(model).problems
    assert [problem for problem in problems if problem.startswith(name)]


@pytest.mark.parametrize(
    "header", [b"[]", b'{"wte.weight": 1}', b'{"wte.weight": {}}', b'{"wte.weight": {"data_offsets": 7}}']
)
def test_a_damaged_safetensors_header_is_named(model, header):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert [problem for problem in inspect(model).problems if "model.safetensors is incomplete or damaged" in problem]


def test_truncated_weights_are_reported(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (problem,) = inspect(model).problems
    assert problem.startswith("model.safetensors is incomplete or damaged (")


def test_before_the_installation_only_the_size_of_the_weights_is_read(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = inspect(model)
    assert (result.problems, result.bytes) == ((), (model / "model.safetensors").stat().st_size)


@pytest.mark.parametrize("tokenizer", [{}, {"model": None}, {"model": {}}, {"model": {"vocab": 3}}])
def test_a_tokenizer_without_a_vocabulary_is_reported(model, tokenizer):
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = inspect(model).problems
    assert problem in ("the tokenizer has 0 tokens, not 4096", "tokenizer.json is not what it should be")


def test_a_vocabulary_of_one_token_is_reported(model):
    change(model / "tokenizer.json", model={"vocab": {}}, added_tokens=[{"content": "<|endoftext|>", "id": 0}])
    assert inspect(model).problems == ("the tokenizer has 1 tokens, not 4096",)


def test_vocab_json_and_merges_txt_are_read_too(model):
    vocabulary = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    (model / "tokenizer.json").unlink()
    added = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    (model / "vocab.json").write_text(json.dumps({**vocabulary["model"]["vocab"], **added}))
    assert inspect(model).problems == ("merges.txt is missing",)
    (model / "merges.txt").write_text("#version: 0.2\n")
    assert inspect(model).problems == ()
    (model / "vocab.json").write_text("{}")
    assert inspect(model).problems == ("the tokenizer has 0 tokens, not 4096",)


class TestHubCache:
    @pytest.mark.parametrize(
        ("env", "cache"),
        [
            ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
            ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
            ({"HOME": "/h", "HF_HOME": "/hf"}, "/hf/hub"),
            ({"HOME": "/h", "HF_HOME": "/hf", "HF_HUB_CACHE": "/cache"}, "/cache"),
        ],
    )
    def test_it_is_where_huggingface_hub_puts_it(self, make_access, env, cache):
        assert make_access(env=env).hub_cache().as_posix() == cache

    def test_without_a_home_folder_there_is_no_cache(self, make_access):
        def unknown_user():
            raise RuntimeError("Could not determine home directory.")

        access = make_access(env={}, home_of_user=unknown_user)
        assert access.hub_cache() is None
        assert read_model_files(access).gpt2 is None

    def download(self, make_access, small, tmp_path, revision="abc"):
        folder = tmp_path / "hub" / "models--openai-community--gpt2"
        shutil.copytree(small, folder / "snapshots" / "abc")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(revision)
        return make_access(env={"HF_HUB_CACHE": str(tmp_path / "hub")})

    def test_a_downloaded_gpt2_is_inspected(self, make_access, small, tmp_path):
        result = read_model_files(self.download(make_access, small, tmp_path)).gpt2
        assert result.path.endswith("abc")
        assert (result.problems, result.tokens) == ((), 4096)

    @pytest.mark.parametrize("revision", ["", "gone"])
    def test_a_download_without_its_revision_is_none(self, make_access, small, tmp_path, revision):
        assert read_model_files(self.download(make_access, small, tmp_path, revision)).gpt2 is None

    @pytest.mark.parametrize(
        ("env", "offline"),
        [
            ({}, ()),
            ({"HF_HUB_OFFLINE": "1"}, ("HF_HUB_OFFLINE",)),
            ({"TRANSFORMERS_OFFLINE": "YES"}, ("TRANSFORMERS_OFFLINE",)),
            ({"HF_HUB_OFFLINE": "0"}, ()),
        ],
    )
    def test_variables_that_disable_downloads_are_reported(self, make_access, env, offline):
        assert read_model_files(make_access(env=env)).offline == offline
