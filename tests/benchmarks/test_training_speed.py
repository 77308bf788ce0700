"""How much faster and smaller a training step is here than in the guide's script: ratios from one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.model import has_bf16

ROWS = ["guide, documents", "guide, sentences", "packed, float32", "packed, bf16", "ours", "ours, compiled"]


@pytest.mark.skipif(sys.platform == "win32", reason="reads peak memory as Linux tells it")
def test_a_step_against_the_guides_and_against_stock():
    if not has_bf16():
        ROWS[:] = [*ROWS[:3], "ours, float32"]
    found = {name: figures_of(name) for name in ROWS}
    ours = found["ours" if has_bf16() else "ours, float32"]
    print(f"\n{'useful tokens a second':24}{'':>8}{'ours is':>10}{'MiB':>8}{'first loss':>12}")
    for name, row in found.items():
        ratio = ours["tokens_per_second"] / row["tokens_per_second"]
        mib = row["peak_bytes"] / 2**20
        print(f"{name:24}{row['tokens_per_second']:8,.0f}{ratio:9.1f}x{mib:8,.0f}{row['first_loss']:12.4f}")
    stock = found["packed, float32"]
    assert ours["first_loss"] == pytest.approx(stock["first_loss"], abs=1e-2)  # bf16 keeps 8 bits
    assert ours["tokens_per_second"] > 3 * found["guide, documents"]["tokens_per_second"]
    assert ours["tokens_per_second"] > stock["tokens_per_second"]
    assert ours["peak_bytes"] < stock["peak_bytes"]


def figures_of(name):
    """Return one row's figures, measured in a process of its own."""
    script = Path(__file__).with_name("training_step.py")
    done = subprocess.run([sys.executable, str(script), name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
