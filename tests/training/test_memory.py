import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.settings import POCKET, SettingsError, TrainingSettings
from helpers.training import engine
from helpers.training.memory import GPT2Shape, Memory, optimizer_bytes, parameters, predict, read_shape
from tests.training import memory_trace

MIB = 2**20
GPT2, WIDE, POCKET_SHAPE = GPT2Shape(12, 768, 12), GPT2Shape(2, 1600, 25), read_shape("pocket")
SHALLOW = GPT2._replace(n_layer=2)  # the formula is linear in layers: two test as much as twelve, in less time


def settings(batch=2, block=512, precision="bf16", checkpointing=False, accumulation=1, **changes):
    return TrainingSettings(
        per_device_train_batch_size=batch,
        block_size=block,
        mixed_precision=precision,
        gradient_checkpointing=checkpointing,
        gradient_accumulation_steps=accumulation,
        **changes,
    )


TRACED = [  # shape, then the arguments of `settings`
    (GPT2, (4, 512)),
    (GPT2, (8, 1024)),
    (SHALLOW, (1, 64)),
    (SHALLOW, (3, 500, "no")),
    (SHALLOW, (16, 1024, "fp16")),
    (SHALLOW, (2, 768, "bf16", False, 4)),
    (SHALLOW, (1, 128, "no", False, 2)),
    (SHALLOW._replace(n_layer=4), (8, 512, "bf16", True)),
    (SHALLOW._replace(n_layer=4), (16, 1024, "no", True)),
    (SHALLOW._replace(n_inner=1000, resid_pdrop=0.0, embd_pdrop=0.0), (4, 256)),
    (WIDE, (4, 1024)),
    (WIDE, (16, 1024, "bf16", True, 8)),
    (WIDE, (1, 32)),
    (POCKET_SHAPE, (8, 256)),
    (POCKET_SHAPE, (64, 256, "no")),
]


@pytest.mark.parametrize("engine_name", ["course", "stock"])
@pytest.mark.parametrize(("shape", "values"), TRACED, ids=[f"{s.n_layer}x{s.n_embd}-{v}" for s, v in TRACED])
def test_the_prediction_is_within_3_percent_of_a_traced_training_step(shape, values, engine_name):
    asked = settings(*values)
    traced = memory_trace.peak_bytes(config_of(shape), asked, engine=engine_name)
    predicted = predict(shape, asked, engine=engine_name).tensor_bytes
    assert predicted == pytest.approx(traced, rel=0.03), f"{predicted / MIB:.1f} MiB, traced {traced / MIB:.1f}"


DEEPER = SHALLOW._replace(n_layer=4)
TRACED_TOO = [  # shape, then what an adapter or another optimizer changes
    (SHALLOW, {"batch": 8, "block": 1024, "lora_r": 8}),
    (SHALLOW, {"batch": 1, "block": 64, "lora_r": 128}),
    (SHALLOW, {"batch": 8, "block": 1024, "lora_r": 8, "lora_dropout": 0.1}),
    (DEEPER, {"batch": 8, "lora_r": 8, "checkpointing": True}),
    (DEEPER, {"batch": 16, "block": 1024, "lora_r": 64, "precision": "no", "checkpointing": True}),
    (WIDE, {"batch": 4, "block": 1024, "lora_r": 16, "accumulation": 4}),
    (SHALLOW, {"optim": "adafactor"}),
    (SHALLOW, {"batch": 1, "block": 64, "precision": "no", "accumulation": 2, "optim": "adafactor"}),
    (WIDE, {"block": 128, "checkpointing": True, "optim": "adafactor"}),
    (POCKET_SHAPE, {"batch": 1, "block": 64, "lora_r": 128, "optim": "adafactor"}),
]


@pytest.mark.parametrize(("shape", "values"), TRACED_TOO, ids=[f"{s.n_layer}x{s.n_embd}-{v}" for s, v in TRACED_TOO])
def test_with_an_adapter_or_adafactor_it_is_within_3_percent_too(shape, values):
    asked = settings(**values)
    traced = memory_trace.peak_bytes(config_of(shape), asked, engine="course")
    predicted = predict(shape, asked).tensor_bytes
    assert predicted == pytest.approx(traced, rel=0.03), f"{predicted / MIB:.1f} MiB, traced {traced / MIB:.1f}"


ON_A_CARD = [  # trainings that fit a card of 12 GB, as arguments of `settings`
    (1, 256), (4, 512), (8, 512), (4, 1024), (8, 1024), (16, 512), (2, 1024, "bf16", False, 4), (8, 512, "bf16", True),
    (16, 1024, "bf16", True), (4, 512, "no"), (4, 1024, "no"), (4, 1024, "no", True), (4, 512, "fp16"),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: `make test TORCH=auto` on one")
@pytest.mark.parametrize("values", ON_A_CARD, ids=str)
def test_the_prediction_is_within_5_percent_of_the_peak_on_a_card(values):
    asked = settings(*values)
    measured = peak_bytes_on_the_card(config_of(GPT2), asked)
    predicted = predict(GPT2, asked).total_bytes
    assert predicted == pytest.approx(measured, rel=0.05), f"{predicted / MIB:.0f} MiB, measured {measured / MIB:.0f}"


def peak_bytes_on_the_card(config, asked):
    """Return the peak memory of two real steps with the course's engine, in bytes, AdamW's averages included."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(asked.mixed_precision)
    model = GPT2LMHeadModel(config).cuda().train()
    if asked.gradient_checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.23
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(asked.per_device_train_batch_size, asked.block_size, dtype=torch.int64, device="cuda")
    with engine.equal_results_less_work(model):
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            for _ in range(asked.gradient_accumulation_steps):
                with torch.autocast("cuda", half, enabled=half is not None):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


def config_of(shape):
    return GPT2Config(**shape._asdict(), bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize("shape", [GPT2, WIDE, POCKET_SHAPE])
def test_what_adafactor_keeps_is_what_it_has_after_a_step(shape):
    with torch.device("meta"):
        sizes = [parameter.shape for parameter in GPT2LMHeadModel(config_of(shape)).parameters()]
    by_hand = sum(size[0] + size[1] if len(size) == 2 else size[0] for size in sizes)
    assert optimizer_bytes(shape, settings(optim="adafactor")) == 4 * by_hand


def test_a_trace_takes_far_less_memory_than_the_step_it_traces():
    import psutil

    before = psutil.Process().memory_info().rss
    assert memory_trace.peak_bytes(config_of(SHALLOW), settings(64, 1024), engine="stock") > 30_000 * MIB
    assert psutil.Process().memory_info().rss - before < 1000 * MIB


def test_a_config_of_transformers_can_be_used_instead_of_the_shape():
    assert predict(config_of(WIDE), settings()) == predict(WIDE, settings())


@pytest.mark.parametrize("name", ["distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "pocket"])
def test_parameters_are_those_of_the_model(name):
    shape = read_shape(name)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config_of(shape))
    assert parameters(shape) == model.num_parameters()


@pytest.mark.parametrize("engine_name", ["course", "stock"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_larger_model_or_batch_never_takes_less_memory(engine_name, checkpointing, precision):
    def total(shape=GPT2, **values):
        asked = settings(**{"precision": precision, "checkpointing": checkpointing} | values)
        return predict(shape, asked, engine=engine_name).total_bytes

    for totals in (
        [total(batch=n) for n in range(1, 65)],
        [total(block=n) for n in range(8, 1025, 8)],
        [total(accumulation=n) for n in (1, 2, 8)],
        [total(GPT2._replace(n_layer=n)) for n in range(1, 49)],
        [total(GPT2._replace(n_embd=n)) for n in range(192, 1601, 64)],
        [total(GPT2._replace(vocab_size=n)) for n in range(500, 60_000, 500)],
    ):
        assert totals == sorted(totals)
        assert totals[-1] > totals[0]


def test_checkpointing_half_precision_and_the_engine_each_take_less_memory():
    plain = predict(GPT2, settings(8, 1024)).total_bytes
    assert predict(GPT2, settings(8, 1024, checkpointing=True)).total_bytes < plain
    assert plain < predict(GPT2, settings(8, 1024, "no")).total_bytes
    assert plain < predict(GPT2, settings(8, 1024), engine="stock").total_bytes / 2


def test_the_parts_that_do_not_depend_on_the_batch_by_hand():
    memory = predict(GPT2, settings(8, 1024, "no", accumulation=2), engine="stock")
    n = 124_439_808
    assert (memory.weights, memory.gradients, memory.optimizer, memory.autocast_copies) == (4 * n, 4 * n, 8 * n, 0)
    assert memory.loss == 12 * 8 * 1024 * 50257


def test_the_parts_add_up():
    memory = predict(GPT2, settings())
    assert sum(memory.parts.values()) == memory.total_bytes == memory.tensor_bytes + memory.overhead
    assert set(memory.parts) == set(vars(memory)) - {"moment"}
    assert replace(memory, loss=memory.loss + 1).total_bytes == memory.total_bytes + 1
    assert isinstance(memory, Memory)


def test_auto_is_bf16_unless_the_precision_is_given():
    auto = settings(precision="auto")
    assert predict(GPT2, auto) == predict(GPT2, settings(precision="bf16"))
    assert predict(GPT2, auto, precision="no") == predict(GPT2, settings(precision="no"))


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
            ('{"model_type": "gpt2", "n_embd": "768"}', "cannot be read"),
            ('{"model_type": "gpt2", "n_embd": -1}', "below 0"),
            ('{"model_type": "llama"}', "is a llama model"),
        ],
    )
    def test_a_broken_folder_is_one_sentence(self, tmp_path, written, words):
        (tmp_path / "config.json").write_text(written)
        with pytest.raises(SettingsError, match=words) as error:
            read_shape(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_an_unknown_model_is_one_sentence_with_what_to_do(self):
        with pytest.raises(SettingsError, match=r"somebody/model.*gpt2-xl.*folder") as error:
            read_shape("somebody/model")
        assert str(error.value).count(". ") == 0


def test_a_prediction_needs_no_torch():
    source = "import sys, helpers.training.plan; print({'torch', 'transformers'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert child.stdout == "set()\n"
