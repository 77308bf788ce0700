import json

import pytest
import torch
from transformers import GPT2LMHeadModel

from helpers.paths import POCKET
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.shape import GPT2Shape, operations_per_token, parameters, read_shape
from tests.training.test_memory import config_of

GPT2 = GPT2Shape(12, 768, 12)


PUBLISHED = {
    "distilgpt2": 81_912_576, "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200, "pocket": 2_615_424,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameter_count_matches_the_model(name):
    shape = read_shape(name)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config_of(shape))
    assert parameters(shape) == model.num_parameters() == PUBLISHED[name]
    assert name == "pocket" or shape.n_embd == 64 * shape.n_head, "all heads of OpenAI's models have width 64"


def test_operations_match_nanogpts_count():
    assert operations_per_token(GPT2, 1024) == pytest.approx(0.855e9, rel=1e-3)
    assert operations_per_token(GPT2, 512) == pytest.approx(0.799e9, rel=1e-3)


def test_frozen_weights_have_no_gradient_and_checkpointing_repeats_the_forward_pass():
    plain, again = (TrainingSettings(lora_r=8, gradient_checkpointing=on) for on in (False, True))
    weights, adapter, attention = 124_439_808 - 1024 * 768, 1_179_648, 4 * 12 * 768 * 1024
    forward = 2 * (weights + adapter) + attention
    assert operations_per_token(GPT2, 1024, plain) == 2 * forward + 2 * adapter + attention
    assert operations_per_token(GPT2, 1024, again) == 3 * forward + 2 * adapter + attention


class TestReadShape:
    @pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
    def test_openais_models_are_known_by_name(self, name):
        assert read_shape(name) == GPT2

    def test_the_shipped_model_is_read_by_name_or_folder(self):
        assert read_shape("pocket") == read_shape(str(POCKET))
        assert (read_shape("pocket").n_layer, read_shape("pocket").vocab_size) == (4, 4096)

    def test_missing_values_default_to_those_of_gpt2(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "gpt2").mkdir()
        (tmp_path / "gpt2/config.json").write_text(json.dumps({"model_type": "gpt2", "n_inner": 512}))
        assert read_shape("gpt2") == GPT2._replace(n_inner=512), "a folder with that name comes first"

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
