"""One training run of a very small model, in a separate process to measure its own memory.

    python training_scale.py MODEL FILE MAX_TOKENS

Prints JSON: tokens trained on; seconds per million tokens in the fastest tenth of the history's rows, because other
work on the machine only slows it down; peak memory above the start. The pages of the prepared text, a file that the
system can drop from memory at any time, are not counted.
"""

import itertools
import json
import statistics
import sys
import time

import psutil

from helpers.data.preparation import prepare
from helpers.settings import TrainingSettings
from helpers.training.fine_tuning import fine_tune


def own_bytes():
    """Return the memory this process holds, less the files mapped into it."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def main(model, file, max_tokens):
    """Prepare the text, train on it once, print the metrics."""
    settings = TrainingSettings(
        run="scale", model_name_or_path=model, source=file, max_tokens=int(max_tokens), near_duplicates="keep",
        validation_share=0.001, test_share=0.001, block_size=64, per_device_train_batch_size=128, num_train_epochs=1,
        logging_steps=4, eval_steps=10**5, save_steps=10**5, sample_prompt="",
    )  # fmt: skip
    prepare(settings)
    before, rows = own_bytes(), []
    run = fine_tune(settings, watch=lambda _, progress: rows.append((progress.step, time.perf_counter(), own_bytes())))
    tokens = settings.logging_steps * settings.effective_batch_size * settings.block_size
    seconds = [
        end - start
        for (step, start, _), (next_step, end, _) in itertools.pairwise(rows)
        if next_step - step == settings.logging_steps  # the last rows are closer together and include the validation
    ]
    facts = {
        "tokens": run.facts["tokens"],
        "seconds_per_million": statistics.quantiles(seconds, n=10)[0] * 1e6 / tokens,
    }
    print(json.dumps(facts | {"bytes": max(held for *_, held in rows) - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
