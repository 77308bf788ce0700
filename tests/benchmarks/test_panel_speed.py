"""How long it takes to build a panel and to answer a moving slider: printed and compared."""

import statistics
import time

import pytest

from helpers.model import load_model, load_tokenizer
from helpers.settings import DataSettings, EvaluationSettings, TrainingSettings
from helpers.widgets import DataPanel, Playground, TrainingPanel

MOVES = 200


def playground():
    models = {name: load_model("pocket") for name in ("base", "tuned")}
    tokenizer = load_tokenizer("pocket")
    return lambda: Playground(models, tokenizer, EvaluationSettings())


def read_data_panel():
    panel = DataPanel(DataSettings())
    panel.thread.join()  # its source is read in the background
    return panel


@pytest.mark.parametrize(
    ("name", "builder", "setting", "values"),
    [
        ("training panel", lambda: lambda: TrainingPanel(TrainingSettings()), "learning_rate", (1e-3, 1e-4)),
        ("training panel, GPT-2", lambda: lambda: TrainingPanel(TrainingSettings.from_preset("rtx-4070-ti")),
         "per_device_train_batch_size", (4, 64)),
        ("data panel", lambda: read_data_panel, "block_size", (256, 512)),
        ("playground", playground, "temperature", (0.5, 1.5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_answering_a_slider_takes_less_than_half_the_time_of_building_the_panel(name, builder, setting, values):
    build = builder()
    build()  # the first one imports
    start = time.perf_counter()
    panel = build()
    built = time.perf_counter() - start
    moves = []
    for move in range(MOVES):
        start = time.perf_counter()
        panel.controls[setting].value = values[move % 2]
        moves.append(time.perf_counter() - start)
    median, slow = statistics.median(moves), statistics.quantiles(moves, n=20)[-1]
    print(f"\n{name}: built in {1000 * built:.0f} ms; a move of {setting} takes {1000 * median:.2f} ms, ", end="")
    print(f"95% take less than {1000 * slow:.2f} ms")
    assert slow < built / 2
