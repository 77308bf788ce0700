import json
import math
import shutil
import socketserver
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from helpers.model import (
    check_model_name,
    check_sound,
    load_model,
    load_start,
    load_tokenizer,
    on_device,
    quiet,
    set_attention_dropout,
    train_tokenizer,
)
from helpers.paths import POCKET
from helpers.settings import SettingsError, TrainingSettings
from helpers.training.lora import add_adapter


def test_the_pocket_model_differs_from_gpt2_only_in_size():
    model, tokenizer = load_model("pocket"), load_tokenizer("pocket")
    stock = GPT2Config()
    assert type(model) is GPT2LMHeadModel
    assert type(tokenizer) is GPT2Tokenizer
    for name in ("activation_function", "attn_pdrop", "resid_pdrop", "embd_pdrop", "tie_word_embeddings"):
        assert getattr(model.config, name) == getattr(stock, name)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == model.config.vocab_size - 1
    check_sound(model, tokenizer, block_size=256)


def test_the_pocket_model_stays_small():
    assert sum(file.stat().st_size for file in POCKET.iterdir() if file.is_file()) <= 12 * 1024**2


def test_the_pocket_tokenizer_round_trips_any_text():
    tokenizer = load_tokenizer("pocket")
    for text in ("plain", " two  spaces\n\ttab", "caf\u00e9 \u72d0\u72f8 \U0001f98a", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_half_precision_file_is_loaded_in_float32(tmp_path, tiny_model):
    load_model(str(tiny_model)).half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(str(tmp_path)).parameters()} == {torch.float32}


def test_random_weights_follow_the_seed_without_changing_the_global_rng_state(tiny_model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (load_model(str(tiny_model), from_scratch=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.transformer.wte.weight, same.transformer.wte.weight)
    assert not torch.equal(one.transformer.wte.weight, other.transformer.wte.weight)
    assert not torch.equal(one.transformer.wte.weight, load_model(str(tiny_model)).transformer.wte.weight)


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_loaded_model_is_in_evaluation_mode(tiny_model, from_scratch):
    assert not load_model(str(tiny_model), from_scratch=from_scratch).training


def test_an_empty_tokenizer_is_refused(tmp_path):
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="is broken: it has 1 tokens"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_an_unavailable_model_is_an_error_with_an_alternative(load):
    with pytest.raises(SettingsError, match="model_name_or_path='pocket'"):
        load("nobody/nothing-at-all")


def test_a_misspelled_folder_that_looks_like_a_hub_name_gets_a_suggestion(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"; did you mean 'models/mine'\?$"):
        load_model("models/mien")


@pytest.fixture
def silent_hub(monkeypatch):
    """Replace the Hub with a server that drops every connection; return the list of callers."""
    callers = []

    class Silent(socketserver.BaseRequestHandler):
        def handle(self):
            callers.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield callers
        server.shutdown()


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_that_does_not_answer_is_asked_once(silent_hub, load):
    with pytest.raises(SettingsError, match="could not be loaded") as error:
        load("nobody/nothing-at-all")
    assert len(str(error.value).splitlines()) == 1
    assert len(silent_hub) == 1, "each further request could take minutes"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(), r"could not be loaded \(OSError\)"),
        (RuntimeError(), r"is broken \(RuntimeError\)"),
        (HTTPError("the connection broke"), r"could not be loaded \(the connection broke\)"),
    ],
)
def test_an_error_without_a_message_is_shown_by_its_type(tiny_model, monkeypatch, error, words):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(SettingsError, match=words):
        load_model(str(tiny_model))


def test_another_kind_of_model_is_refused(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="is a bert model"):
        load_model(str(tmp_path))


def broken(folder, source, spoil):
    shutil.copytree(source, folder)
    spoil(folder)
    return str(folder)


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.0.attn.c_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_values(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def as_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_an_adapter(folder):
    add_adapter(load_model(folder), TrainingSettings(lora_r=2)).save_pretrained(folder)


def with_a_class_for_questions(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "RagTokenizer"}))


def without_a_shard(folder):
    (folder / "model.safetensors").unlink()
    load_model("pocket").save_pretrained(folder, max_shard_size="4MB")
    (folder / "model-00001-of-00003.safetensors").unlink()


def cut_short(name, n_bytes):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])


IMPOSSIBLE = [
    (with_values(n_head=0), r"n_head = 0 in the model's config.json: it must be 1 to 1000"),
    (with_values(n_layer=3000), "n_layer = 3000 in the model's config.json: it must be 1 to 200"),
    (with_values(n_embd=10**6), "n_embd = 1000000 "),
    (with_values(vocab_size=10**9), "vocab_size = 1000000000 "),
    (with_values(n_head=-1), "n_head = -1 "),
    (with_values(n_layer=-1), "n_layer = -1 "),
    (with_values(n_layer=0), "n_layer = 0 "),
    (with_values(n_embd=0), "n_embd = 0 "),
    (with_values(vocab_size=-5), "vocab_size = -5 "),
    (with_values(n_positions=0), "n_positions = 0 "),
    (with_values(n_head=5), "n_embd = 32 cannot be split into n_head = 5 heads"),
    (with_values(resid_pdrop=7), "could not be loaded .dropout .* got 7.: a file in .* is damaged or missing"),
    (with_values(activation_function="none"), "could not be loaded"),
    (with_values(n_inner=-3), "is broken .*negative dimension"),
]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_short("model.safetensors", 5000), "is broken .*cut short"),
        (cut_short("model.safetensors", 0), "is broken .*cut short"),
        (cut_short("config.json", 20), "is damaged or missing. Copy, download or train the model again"),
        (lambda folder: (folder / "config.json").write_text("null"), "is damaged or missing"),
        (with_values(n_embd="8"), "'n_embd' expected int, got str .* a file in .* is damaged or missing"),
        (without_a_weight, r"1 of its weights are missing, such as transformer.h.0.attn.c_proj.weight"),
        (with_values(n_embd=16), r"is broken \(shapes differ\): .* does not fit its config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "could not be loaded"),
        (without_a_shard, "model-00001-of-00003.safetensors.: a file in .* is damaged or missing"),
        (as_a_pickle, "could not be loaded .*a .bin file is a pickle"),
        (with_an_adapter, "has a LoRA adapter .* beside its weights: remove the files of the adapter, or merge it"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "a file in .* is damaged or missing"),
        (with_values(model_type="evil", auto_map={"AutoConfig": "evil.Config"}), "this course runs no code of a model"),
        *IMPOSSIBLE,
    ],
)
def test_an_incomplete_or_invalid_model_gives_one_sentence(tmp_path, tiny_model, spoil, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load_model(broken(tmp_path / "model", tiny_model, spoil))
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_named(tmp_path, tiny_model, monkeypatch):
    folder = broken(tmp_path / "model", tiny_model, lambda folder: (folder / "model.safetensors").unlink())
    monkeypatch.setattr(
        "helpers.model.os", SimpleNamespace(R_OK=4, access=lambda file, how: file.name != "config.json")
    )
    with pytest.raises(SettingsError, match=r"you may not read its config\.json: ask the owner to change"):
        load_model(folder)


@pytest.mark.parametrize(("spoil", "words"), IMPOSSIBLE)
def test_a_new_model_of_an_impossible_shape_is_refused(tmp_path, tiny_model, spoil, words):
    with pytest.raises(SettingsError, match=words):
        load_model(broken(tmp_path / "model", tiny_model, spoil), from_scratch=True)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_short("tokenizer.json", 1000), "is damaged or missing. Copy, download or train"),
        (cut_short("tokenizer_config.json", 10), "is damaged or missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is damaged or missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has 1 tokens"),
        (with_a_class_for_questions, "could not be loaded .*RagTokenizer.*: a file in .* is damaged or missing"),
    ],
)
def test_a_damaged_tokenizer_is_not_blamed_on_the_network(tmp_path, tiny_model, spoil, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load_tokenizer(broken(tmp_path / "model", tiny_model, spoil))
    assert "network" not in str(caught.value)


def test_a_consistent_model_passes(tiny):
    check_sound(*tiny)


def test_a_block_longer_than_the_positions_is_refused(tiny_model):
    with pytest.raises(SettingsError, match="use at most 64"):
        check_sound(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)), block_size=65)


def test_a_token_without_an_embedding_is_refused(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(SettingsError, match="4097 tokens and the model 4096 embeddings"):
        check_sound(load_model(str(tiny_model)), tokenizer, block_size=64)


def test_a_smaller_tokenizer_of_another_model_is_refused(tiny_model):
    tokenizer = train_tokenizer(["the fox and the hen"], vocab_size=260)
    with pytest.raises(SettingsError, match="ends a text with token 4095 and the tokenizer with 259"):
        check_sound(load_model(str(tiny_model)), tokenizer, block_size=64)


def test_models_loaded_in_parallel_threads_keep_their_weights_tied(tiny_model):
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(load_model, [str(tiny_model)] * 12))
    assert all(model.lm_head.weight is model.transformer.wte.weight for model in [*models, load_model("pocket")])


def test_a_lora_adapter_is_refused_as_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingsError, match="is a LoRA adapter, not a model"):
        check_model_name(str(tmp_path))


def test_attention_dropout_changes_the_layers_but_not_the_config():
    model = load_model("pocket")
    set_attention_dropout(model, 0.25)
    assert {block.attn.attn_dropout.p for block in model.transformer.h} == {0.25}
    assert model.config.attn_pdrop == GPT2Config().attn_pdrop


def test_a_model_stays_on_the_gpu_until_the_last_block_that_uses_it_ends(tiny, fake_card):
    model, _ = tiny
    first, second = on_device(model), on_device(model)  # as a panel's thread and a cell overlap
    assert first.__enter__() is second.__enter__() is model
    first.__exit__(None, None, None)
    assert fake_card.present == {id(model)}
    second.__exit__(None, None, None)
    assert (fake_card.present, fake_card.n_visits) == (set(), 1)


def test_a_model_leaves_the_gpu_after_an_error(tiny, fake_card):
    with pytest.raises(ZeroDivisionError), on_device(tiny[0]):
        _ = 1 / 0
    assert fake_card.present == set()


def test_a_model_already_on_the_device_is_not_moved(tiny, monkeypatch):
    monkeypatch.setattr(GPT2LMHeadModel, "to", None)
    with on_device(tiny[0]) as model, on_device(model):
        assert model is tiny[0]


@pytest.fixture
def shown_bars():
    import datasets
    from transformers.utils import logging

    datasets.enable_progress_bars()
    logging.enable_progress_bar()


@pytest.mark.usefixtures("shown_bars")
def test_quiet_restores_the_progress_bars():
    import datasets
    from transformers.utils import logging

    with quiet():
        assert datasets.are_progress_bars_disabled()
        assert not logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()
    assert logging.is_progress_bar_enabled()


@pytest.mark.usefixtures("shown_bars")
def test_overlapping_quiet_blocks_hide_progress_bars_until_the_last_one_ends():
    import datasets
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    with ExitStack() as panel, ExitStack() as cell:
        panel.enter_context(quiet())
        cell.enter_context(quiet())
        panel.close()
        assert datasets.are_progress_bars_disabled()
        assert logging.get_verbosity() == logging.ERROR != verbosity
    assert not datasets.are_progress_bars_disabled()
    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == verbosity


@pytest.mark.usefixtures("shown_bars")
def test_a_download_keeps_its_progress_bar():
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    with quiet(shows_downloads=True):
        assert not logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()


class TestANewModel:
    TEXTS = tuple(f"the fox number {i} ran over the hill {i * 7}" for i in range(300))
    SMALL = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16}  # noqa: RUF012 (never changed)

    def settings(self, **changes):
        return TrainingSettings(from_scratch=True, **changes)

    def test_the_tokenizer_has_the_layout_of_gpt2s_and_round_trips_text(self, tmp_path):
        train_tokenizer(self.TEXTS, vocab_size=400).save_pretrained(tmp_path)
        tokenizer = load_tokenizer(str(tmp_path))
        assert tokenizer.eos_token == "<|endoftext|>"
        assert tokenizer.eos_token_id == len(tokenizer) - 1
        assert tokenizer.decode(tokenizer.encode("caf\u00e9 over the hill")) == "caf\u00e9 over the hill"
        assert len(tokenizer.encode(" the fox ran over the hill")) < 10  # words of the text became tokens

    def test_it_has_the_requested_shape_and_one_embedding_per_token(self):
        tokenizer = train_tokenizer(["ab ab ab"], vocab_size=4096)
        settings = self.settings(tokenizer="train", resid_pdrop=0.0, **self.SMALL)
        config = load_start(settings, tokenizer).config
        assert {name: getattr(config, name) for name in self.SMALL} == self.SMALL
        assert config.vocab_size == len(tokenizer) < 270
        assert config.eos_token_id == config.bos_token_id == len(tokenizer) - 1
        assert (config.resid_pdrop, config.embd_pdrop) == (0.0, 0.0)

    def test_unset_dimensions_are_copied_from_the_named_model(self):
        config = load_start(self.settings(n_layer=2), load_tokenizer("pocket")).config
        assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (2, 192, 6, 4096)

    def test_the_seed_determines_the_weights_without_changing_the_global_rng_state(self):
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        tokenizer = load_tokenizer("pocket")
        models = (load_start(self.settings(seed=seed, **self.SMALL), tokenizer) for seed in (1, 1, 2))
        a, b, c = (model.transformer.wte.weight for model in models)
        assert torch.rand(1) == expected
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("n_layer", [2, 8])
    def test_it_is_initialised_like_gpt2_and_starts_at_the_loss_of_a_uniform_guess(self, n_layer):
        settings = self.settings(n_layer=n_layer, n_embd=64, n_head=2, n_positions=64)
        model = load_start(settings, load_tokenizer("pocket"))
        for block in model.transformer.h:  # each of 2N additions to the residual stream is scaled by 1 / sqrt(2N)
            assert block.attn.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * n_layer), rel=0.05)
            assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
        ids = torch.randint(4096, (4, 64), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(math.log(4096), rel=0.01)

    def test_a_width_that_cannot_be_split_into_heads_is_refused(self):
        message = "n_embd = 100 cannot be split into n_head = 6 heads: use a multiple of 6"
        with pytest.raises(SettingsError, match=message):
            load_start(self.settings(n_embd=100), load_tokenizer("pocket"))
