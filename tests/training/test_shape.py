import json

import pytest
import torch
from transformers import GPT2LMHeadModel

from helpers.paths import POCKET
from helpers.settings import SettingsError
from helpers.training.shape import GPT2Shape, operations_per_token, parameters, read_shape
from tests.training.test_memory import config_of

GPT2 = GPT2Shape(12, 768, 12)


@pytest.mark.parametrize("name", ["distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "pocket"])
def test_parameters_are_those_of_the_model(name):
    shape = read_shape(name)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config_of(shape))
    assert parameters(shape) == model.num_parameters()


def test_operations_match_nanogpts_count():
    assert operations_per_token(GPT2, 1024) == pytest.approx(0.855e9, rel=1e-3)
    assert operations_per_token(GPT2, 512) == pytest.approx(0.799e9, rel=1e-3)


class TestReadShape:
    @pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
    def test_of_openais_models(self, name):
        assert read_shape(name) == GPT2

    def test_of_the_shipped_model_and_of_a_folder(self):
        assert read_shape("pocket") == read_shape(str(POCKET))
        assert (read_shape("pocket").n_layer, read_shape("pocket").vocab_size) == (4, 4096)

    def test_what_a_folder_leaves_out_is_gpt2s_own(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3}))
        assert read_shape(str(tmp_path)) == GPT2._replace(n_layer=3)

    @pytest.mark.parametrize(
        ("written", "words"),
        [
            ("{", "cannot be read"),
            ("[]", "cannot be read"),
            ('{"model_type": "gpt2", "n_embd": "768"}', "n_embd = '768', which no model can have"),
            ('{"model_type": "gpt2", "n_embd": -1}', "n_embd = -1"),
            ('{"model_type": "gpt2", "n_head": 0}', "n_head = 0"),
            ('{"model_type": "gpt2", "n_layer": null}', "n_layer = None"),
            ('{"model_type": "gpt2", "n_inner": 2.5}', "n_inner = 2.5"),
            ('{"model_type": "llama"}', "is a llama model"),
            ("{}", "names no model_type"),
        ],
    )
    def test_a_broken_config_gives_one_sentence(self, tmp_path, written, words):
        (tmp_path / "config.json").write_text(written)
        with pytest.raises(SettingsError, match=words) as error:
            read_shape(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_an_unknown_model_gives_one_sentence_with_what_to_do(self):
        with pytest.raises(SettingsError, match=r"somebody/model.*gpt2-xl.*folder") as error:
            read_shape("somebody/model")
        assert str(error.value).count(". ") == 0
