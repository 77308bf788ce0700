import sys

import pytest
import torch

from helpers.training.hardware import peak_bytes, reset_peak


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="as Linux counts resident memory")
def test_the_peak_counts_from_the_last_reset():
    torch.ones(2**26)  # float32, 256 MiB, freed at once
    large = peak_bytes()
    reset_peak()
    assert peak_bytes() < large - 2**26
