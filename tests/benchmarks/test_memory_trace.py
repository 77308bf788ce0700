"""The formula for memory against a trace of each kind of training run, in all combinations that were once wrong."""

import pytest

from tests.training.test_memory import GPT2, POCKET_SHAPE, SHALLOW, WIDE, traced_and_predicted

DEEPER = SHALLOW._replace(n_layer=4)
NARROW_INSIDE = SHALLOW._replace(n_inner=1000, resid_pdrop=0.0, embd_pdrop=0.0)
STEPS = [
    (GPT2, {"batch": 4}),
    (GPT2, {"batch": 8, "block": 1024}),
    (SHALLOW, {"batch": 1, "block": 64}),
    (SHALLOW, {"batch": 3, "block": 500, "precision": "no"}),
    (SHALLOW, {"batch": 16, "block": 1024, "precision": "fp16"}),
    (SHALLOW, {"block": 768, "accumulation": 4}),
    (SHALLOW, {"batch": 1, "block": 128, "precision": "no", "accumulation": 2}),
    (DEEPER, {"batch": 8, "checkpointing": True}),
    (DEEPER, {"batch": 16, "block": 1024, "precision": "no", "checkpointing": True}),
    (NARROW_INSIDE, {"batch": 4, "block": 256}),
    (WIDE, {"batch": 4, "block": 1024}),
    (WIDE, {"batch": 16, "block": 1024, "checkpointing": True, "accumulation": 8}),
    (WIDE, {"batch": 1, "block": 32}),
    (POCKET_SHAPE, {"batch": 8, "block": 256}),
    (POCKET_SHAPE, {"batch": 64, "block": 256, "precision": "no"}),
]
ADAPTERS_AND_ADAFACTOR = [
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
PROCESSES = [
    (SHALLOW, {"batch": 4}),
    (SHALLOW, {"batch": 1, "block": 64, "precision": "no"}),
    (WIDE, {"batch": 4, "block": 1024, "accumulation": 2}),
    (WIDE, {"batch": 1, "block": 32, "checkpointing": True}),
    (SHALLOW, {"batch": 8, "lora_r": 8}),
    (POCKET_SHAPE, {"batch": 64, "block": 256, "precision": "no"}),
]
SAMPLES = [
    (SHALLOW, {}, 70),
    (GPT2, {}, 1024),
    (WIDE, {"precision": "no"}, 500),
    (DEEPER, {"lora_r": 8}, 1000),
    (POCKET_SHAPE, {}, 256),
    (POCKET_SHAPE, {"lora_r": 4, "precision": "no"}, 70),
]
ALL = [
    *((shape, values, {}) for shape, values in STEPS + ADAPTERS_AND_ADAFACTOR),
    *((shape, values, {"n_processes": 2}) for shape, values in PROCESSES),
    *((shape, values, {"sample_tokens": tokens}) for shape, values, tokens in SAMPLES),
]


@pytest.mark.parametrize(("shape", "values", "how"), ALL, ids=[f"{s.n_layer}x{s.n_embd}-{v}-{h}" for s, v, h in ALL])
def test_the_prediction_is_within_3_percent_of_a_trace(shape, values, how):
    traced, predicted = traced_and_predicted(shape, values, **how)
    print(f"{predicted / 2**20:10,.1f} MiB predicted, {traced / 2**20:10,.1f} traced, {predicted / traced - 1:+.2%}")
    assert predicted == pytest.approx(traced, rel=0.03)
