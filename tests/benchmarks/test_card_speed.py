"""The plan and each change of the engine measured on a GPU, in one JSON; `card.py` prints a README table of it."""

import os
from pathlib import Path

import pytest
import torch

from tests.benchmarks import card

RECORD = Path(os.environ.get("OUT", ".")) / "card.json"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: `make test TORCH=auto` on one"),
]


@pytest.mark.parametrize("part", card.PARTS)
def test_measurements_on_a_gpu_match_the_memory_plan(part):
    rows = card.measure(part, card.CARD, RECORD)
    if part in ("memory", "presets"):
        shares = {row["what"]: row["predicted_share"] for row in rows}
        assert shares == pytest.approx(dict.fromkeys(shares, 1), abs=0.05)
