import pytest

from helpers.display import MIB
from helpers.training.evaluation_memory import evaluation_bytes, scoring_bytes
from helpers.training.shape import GPT2Shape, parameters
from tests.training import memory_trace
from tests.training.test_memory import SHALLOW, WIDE, config_of


@pytest.mark.parametrize(
    ("shape", "batch", "n_scored"),
    [(WIDE, 8, 1024), (SHALLOW, 1, 1024), (WIDE._replace(n_inner=1600, n_positions=512, vocab_size=5000), 8, 100)],
)
def test_the_predicted_peak_of_scoring_is_within_1_percent_of_a_trace(shape, batch, n_scored):
    traced = memory_trace.scoring_peak_bytes(config_of(shape), batch=batch, n_scored=n_scored) - 4 * parameters(shape)
    assert scoring_bytes(shape, per_device_eval_batch_size=batch) == pytest.approx(traced, rel=0.01)


def test_the_keys_and_values_of_samples_count_where_scoring_takes_less():
    shape = GPT2Shape(48, 256, 4, vocab_size=1000)
    assert evaluation_bytes(shape) - 4 * parameters(shape) == pytest.approx(1.01 * 480 * MIB + 80 * MIB, rel=0.001)
