import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from helpers.settings import TrainingSettings
from helpers.training.memory import _Step, evaluation_bytes, optimizer_bytes, predict, scoring_bytes, sequences_at_once
from helpers.training.shape import GPT2Shape, parameters, read_shape
from tests.training import memory_trace

MIB = 2**20
GPT2, WIDE, POCKET_SHAPE = GPT2Shape(12, 768, 12), GPT2Shape(2, 1600, 25), read_shape("pocket")
FEW_WORDS = GPT2Shape(2, 1024, 16, vocab_size=512, n_positions=128)
SHALLOW = GPT2._replace(n_layer=2)  # the formula is linear in layers, so two test as much as twelve, faster


def settings(batch=2, block=512, precision="bf16", checkpointing=False, accumulation=1, **changes):
    return TrainingSettings(
        per_device_train_batch_size=batch,
        block_size=block,
        mixed_precision=precision,
        gradient_checkpointing=checkpointing,
        gradient_accumulation_steps=accumulation,
        **changes,
    )


def traced_and_predicted(shape, values, *, sample_tokens=0, **options):
    """Return the traced and the predicted peak bytes of a step, or of a sample if `sample_tokens` is given."""
    run_settings, options = settings(**values), {"n_processes": 1, "fused_softmax": False} | options
    if not sample_tokens:
        traced = memory_trace.peak_bytes(config_of(shape), run_settings, **options)
        return traced, predict(shape, run_settings, **options).tensor_bytes
    run_settings = run_settings.model_copy(
        update={"sample_prompt": "x" * (sample_tokens - 40)}
    )  # a sample adds 40 tokens
    traced = memory_trace.peak_bytes(
        config_of(shape), run_settings, of="sample", sample_tokens=sample_tokens, **options
    )
    step = _Step(shape, run_settings, run_settings.mixed_precision != "no", False, options["n_processes"], False, False)
    return traced, step.at_sample().tensor_bytes


TRACED = [  # one of each kind; `tests/benchmarks/test_memory_trace.py` has the full list
    (GPT2._replace(n_layer=4), {"batch": 1}, {}),
    (SHALLOW, {"batch": 8}, {"fused_softmax": True}),
    (SHALLOW, {"batch": 4, "lora_r": 8}, {"fused_softmax": True}),
    (SHALLOW, {"batch": 3, "block": 500, "precision": "no"}, {}),
    (WIDE, {"batch": 4, "checkpointing": True, "accumulation": 8}, {}),
    (WIDE, {"batch": 16, "precision": "no", "checkpointing": True}, {}),  # the peak is at the first block
    (SHALLOW, {"batch": 4, "lora_r": 8, "lora_dropout": 0.1}, {}),
    (WIDE, {"block": 128, "optim": "adafactor"}, {}),
    (FEW_WORDS, {"batch": 1, "block": 8, "optim": "adafactor"}, {}),
    (FEW_WORDS, {"batch": 1, "block": 8, "optim": "muon"}, {}),
    (SHALLOW, {"batch": 4, "accumulation": 2}, {"n_processes": 2}),
    (SHALLOW, {}, {"sample_tokens": 200}),
]


@pytest.mark.parametrize(
    ("shape", "values", "how"), TRACED, ids=[f"{s.n_layer}x{s.n_embd}-{v}-{h}" for s, v, h in TRACED]
)
def test_the_prediction_is_within_3_percent_of_a_trace(shape, values, how):
    traced, predicted = traced_and_predicted(shape, values, **how)
    assert predicted == pytest.approx(traced, rel=0.03), f"{predicted / MIB:.1f} MiB, traced {traced / MIB:.1f}"


# The peak of an optimizer step on an H100 and an H200 in MiB (PyTorch 2.11, 2026-11), with two passes where gradients
# accumulate: 13 runs of the benchmark, then those of the presets.
MEASURED = {
    "gpt2": [
        ({"batch": 1, "block": 256}, 2121), ({"batch": 4}, 2811), ({"batch": 8}, 3522), ({"batch": 16}, 4937),
        ({"batch": 4, "block": 1024}, 3522), ({"batch": 8, "block": 1024}, 4940),
        ({"batch": 2, "block": 1024, "accumulation": 4}, 3310), ({"batch": 8, "checkpointing": True}, 2291),
        ({"batch": 16, "block": 1024, "checkpointing": True}, 2857), ({"batch": 4, "precision": "no"}, 3280),
        ({"batch": 4, "block": 1024, "precision": "no"}, 4487), ({"batch": 4, "precision": "fp16"}, 2818),
        ({"batch": 4, "block": 1024, "precision": "no", "checkpointing": True}, 2256),
        ({"batch": 16, "block": 1024}, 7750), ({"batch": 8, "block": 1024, "accumulation": 2}, 5425),
        ({"batch": 4, "block": 1024, "accumulation": 2}, 4001),
        ({"batch": 4, "precision": "fp16", "accumulation": 2}, 3290),
    ],
    "gpt2-medium": [
        ({"batch": 2, "block": 1024, "accumulation": 2}, 8410), ({"batch": 4, "block": 1024, "accumulation": 2}, 10268),
        ({"batch": 2, "block": 1024, "accumulation": 2, "optim": "adafactor"}, 5706),
    ],
    "gpt2-large": [
        ({"batch": 8, "block": 1024, "accumulation": 2, "checkpointing": True, "optim": "adafactor"}, 9564),
        ({"batch": 2, "block": 1024, "accumulation": 2, "optim": "adafactor"}, 11496),
        ({"batch": 1, "block": 1024, "accumulation": 2, "lora_r": 16}, 3926),
    ],
    "gpt2-xl": [
        ({"batch": 1, "block": 1024, "accumulation": 2, "lora_r": 16}, 6924),
        ({"batch": 2, "block": 1024, "accumulation": 2, "lora_r": 16}, 10149),
        ({"batch": 4, "block": 1024, "accumulation": 2, "lora_r": 16, "checkpointing": True}, 5280),
    ],
}  # fmt: skip
MEASURED_COMPILED = {8: 4812, 16: 7445, 32: 12856, 64: 23576}  # blocks of 1,024 tokens per pass: MiB, no dropout


@pytest.mark.parametrize("name", MEASURED)
def test_the_prediction_is_within_2_percent_of_the_peak_measured_on_a_gpu(name):
    shape, measured_mib = read_shape(name), [mib for _, mib in MEASURED[name]]
    run_settings = [settings(**values, sample_prompt="") for values, _ in MEASURED[name]]
    assert [predict(shape, each, fused_softmax=True).total_bytes / MIB for each in run_settings] == pytest.approx(
        measured_mib, 0.02
    )


def test_the_prediction_of_a_compiled_model_is_within_2_percent_of_the_measured_peak():
    shape = GPT2._replace(resid_pdrop=0.0, embd_pdrop=0.0)
    for batch, mib in MEASURED_COMPILED.items():
        memory = predict(shape, settings(batch, 1024, sample_prompt=""), fused_softmax=True, compiled=True)
        assert memory.total_bytes / MIB == pytest.approx(mib, 0.02), batch


def test_validation_takes_less_memory_than_a_training_step():
    run_settings = settings(1, 32)
    traced = memory_trace.peak_bytes(config_of(WIDE), run_settings, of="validation")
    assert traced < predict(WIDE, run_settings).tensor_bytes


def test_a_sample_after_a_long_prompt_takes_more_memory_than_a_step_of_short_blocks():
    run_settings = settings(batch=1, block=32, lora_r=8)
    assert predict(GPT2, run_settings).moment == "the loss"
    long = predict(GPT2, run_settings.model_copy(update={"sample_prompt": "x" * 984}))
    assert long.moment == "a sample"
    assert long.activations >= 2 * 12 * 1024 * 768 * 2, "keys and values of 1,024 tokens in all layers, in 16 bits"


def test_a_prompt_in_a_script_without_its_own_tokens_counts_one_token_per_byte(tokenizer):
    run_settings = settings(sample_prompt="\u8a9e" * 300)
    step = _Step(GPT2, run_settings, True, False, 1, False, False)
    assert step.sample_tokens >= len(tokenizer.encode(run_settings.sample_prompt)) + 40 > 340


def test_a_compiled_model_holds_all_new_gradients_next_to_the_accumulated_ones():
    short = settings(batch=1, block=32, accumulation=2)
    eager, compiled = (predict(GPT2, short, compiled=compiled) for compiled in (False, True))
    n, embedding = parameters(GPT2), 50257 * 768
    assert (eager.gradients, eager.moment) == (4 * (n + embedding), "the loss")
    assert (compiled.gradients, compiled.moment) == (4 * (2 * n + embedding), "the embedding's gradient")


@pytest.mark.parametrize(("precision", "size"), [("no", 4), ("bf16", 2)])
@pytest.mark.parametrize("block", [8, 128, 384, 768])
def test_on_a_cpu_chunked_attention_keeps_the_weights_of_each_part(block, precision, size):
    def block_bytes(*, attn_pdrop, on_processor):
        run_settings = settings(3, block, precision, attn_pdrop=attn_pdrop)
        shape = GPT2._replace(resid_pdrop=0.0)
        return _Step(shape, run_settings, precision != "no", on_processor, 1, False, False).block

    n_weights = sum(128 * (end + 128) for end in range(0, block, 128)) if block >= 128 else block**2
    on_card = block_bytes(attn_pdrop=0.0, on_processor=False)
    without_dropout, with_dropout = (block_bytes(attn_pdrop=share, on_processor=True) - on_card for share in (0.0, 0.1))
    is_chunked = block < 768 or precision == "bf16"
    assert without_dropout == (3 * 12 * n_weights * size if is_chunked else 0), "the kernel handles long blocks"
    assert with_dropout == 3 * 12 * n_weights * (size + size), "plus those that dropout kept"


def test_dropout_masks_are_floats_on_a_processor_and_bytes_on_a_card():
    run_settings, tokens = settings(3, 768, "no", attn_pdrop=0.0), 3 * 768
    card, processor = (
        _Step(GPT2, run_settings, False, on_processor, 1, False, False) for on_processor in (False, True)
    )
    assert processor.block - card.block == 2 * tokens * 768 * (4 - 1)
    assert (card.embedding_mask, processor.embedding_mask) == (tokens * 768, 4 * tokens * 768)


@pytest.mark.parametrize(("precision", "n_copied"), [("bf16", 0), ("no", 4)])  # halves are copied without dropout too
def test_dropout_of_an_adapter_keeps_a_mask_per_matrix_and_has_no_effect_without_an_adapter(precision, n_copied):
    def kept(**changes):
        return _Step(GPT2, settings(3, 512, precision, **changes), precision != "no", False, 1, False, False).block

    n_inputs = 768 + 768 + 768 + 3072  # of the four matrices of a block
    with_masks = kept(lora_r=8, lora_dropout=0.1) - kept(lora_r=8, lora_dropout=0.0)
    assert with_masks == 3 * 512 * (n_inputs + 768 * n_copied)
    assert kept(lora_r=0, lora_dropout=0.1) == kept(lora_r=0, lora_dropout=0.0)


def test_a_processor_never_has_the_kernel_for_the_loss():
    asked = settings()
    with_kernel, without = (predict(GPT2, asked, on_processor=True, fused_softmax=fused) for fused in (True, False))
    assert with_kernel == without


def test_at_least_one_sequence_is_generated_however_large_its_keys_and_values_are():
    assert sequences_at_once(read_shape("gpt2-xl"), 1024) == 1


def test_several_processes_keep_a_buffer_of_the_gradients():
    one, two = (predict(SHALLOW, settings(8), n_processes=n).total_bytes for n in (1, 2))
    assert two - one == 4 * parameters(SHALLOW)


def config_of(shape):
    return GPT2Config(**shape._asdict(), bos_token_id=None, eos_token_id=None)


@pytest.mark.parametrize("shape", [GPT2, WIDE, POCKET_SHAPE])
def test_the_state_size_of_adafactor_matches_a_hand_calculation(shape):
    with torch.device("meta"):
        sizes = [parameter.shape for parameter in GPT2LMHeadModel(config_of(shape)).parameters()]
    by_hand = sum(size[0] + size[1] if len(size) == 2 else size[0] for size in sizes)
    assert optimizer_bytes(shape, settings(optim="adafactor")) == 4 * by_hand
    width, inner = shape.n_embd, 4 * shape.n_embd
    matrices = [(width, 3 * width), (width, width), (width, inner), (inner, width)]  # an adapter has two for each
    by_hand = shape.n_layer * sum((inputs + 8) + (8 + outputs) for inputs, outputs in matrices)
    assert optimizer_bytes(shape, settings(optim="adafactor", lora_r=8)) == 4 * by_hand


@pytest.mark.parametrize("optim", TrainingSettings.model_fields["optim"].annotation.__args__)
def test_the_memory_of_every_optimizer_is_known(optim):
    assert optimizer_bytes(GPT2, settings(optim=optim)) > 0
    with pytest.raises(NotImplementedError, match="optim = 'another'"):
        optimizer_bytes(GPT2, settings().model_copy(update={"optim": "another"}))


def test_a_transformers_config_can_be_used_instead_of_a_shape():
    assert predict(config_of(WIDE), settings()) == predict(WIDE, settings())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_larger_model_or_batch_never_takes_less_memory(checkpointing, precision):
    def total(shape=GPT2, **values):
        run_settings = settings(**{"precision": precision, "checkpointing": checkpointing} | values)
        return predict(shape, run_settings).total_bytes

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


def test_the_parts_of_a_prediction_match_a_hand_calculation():
    memory = predict(GPT2, settings(8, 1024, "no", accumulation=2))
    n = 124_439_808
    gradients = 4 * n + 4 * 50257 * 768  # of the first pass, and the head's of the second
    assert (memory.weights, memory.gradients, memory.optimizer, memory.autocast_copies) == (4 * n, gradients, 8 * n, 0)
    assert memory.loss == 8 * 1024 * 50257 + 2 * 4 * 8 * 1024 * 768, "a chunk's logits; hidden states and gradients"


def test_auto_is_bf16_unless_the_precision_is_given():
    auto = settings(precision="auto")
    assert predict(GPT2, auto) == predict(GPT2, settings(precision="bf16"))
    assert predict(GPT2, auto, precision="no") == predict(GPT2, settings(precision="no"))


def test_a_prediction_needs_no_torch():
    source = "import sys, helpers.training.plan; print({'torch', 'transformers'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert child.stdout == "set()\n"


@pytest.mark.parametrize(
    ("shape", "batch", "n_scored"),
    [(WIDE, 8, 1024), (SHALLOW, 1, 1024), (WIDE._replace(n_inner=1600, n_positions=512, vocab_size=5000), 8, 100)],
)
def test_the_predicted_peak_of_scoring_is_within_1_percent_of_a_trace(shape, batch, n_scored):
    traced = memory_trace.scoring_peak_bytes(config_of(shape), batch=batch, n_scored=n_scored) - 4 * parameters(shape)
    assert scoring_bytes(shape, per_device_eval_batch_size=batch) == pytest.approx(traced, rel=0.01)


def test_the_keys_and_values_of_samples_count_if_scoring_takes_less():
    shape = GPT2Shape(48, 256, 4, vocab_size=1000)
    assert evaluation_bytes(shape) - 4 * parameters(shape) == pytest.approx(1.01 * 480 * MIB + 80 * MIB, rel=0.001)
