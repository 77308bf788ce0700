"""What more text costs a training run: time per token, and no memory."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from helpers.data.in_memory import load_documents
from helpers.settings import DataSettings

SIZES = (10**6, 10**7)  # tokens


def write_random_words(path, n_tokens):
    """Write documents of the fables' words, at least `n_tokens` in all."""
    words = " ".join(load_documents(DataSettings())["train"]["text"]).split()
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n_tokens // 400):  # a word is at least one token
            file.write(" ".join(draw.choices(words, k=400)) + "\n\n")
    return path


def train(model, file, n_tokens, folder):
    """Return the metrics of one training run in a separate process."""
    command = [sys.executable, str(Path(__file__).with_name("training_scale.py")), str(model), str(file), str(n_tokens)]
    environment = {**os.environ, "COURSE_RUNS": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_ten_times_the_text_takes_ten_times_the_time_and_no_more_memory(tiny_model, tmp_path):
    file = write_random_words(tmp_path / "text.txt", max(SIZES))
    rows = [train(tiny_model, file, n_tokens, tmp_path / str(n_tokens)) for n_tokens in SIZES]
    print(f"\n{'tokens':>12}{'s/million':>12}{'MiB':>8}")
    for row in rows:
        print(f"{row['tokens']:12,}{row['seconds_per_million']:12.2f}{row['bytes'] / 2**20:8.0f}")
    small, large = rows
    assert large["tokens"] > 9 * small["tokens"]
    assert large["seconds_per_million"] < 1.3 * small["seconds_per_million"]  # noise apart, there is no difference
    assert large["bytes"] < 1.2 * small["bytes"]
