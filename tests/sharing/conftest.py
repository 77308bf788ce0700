"""A finished run that is trained once and copied for each test, and llama.cpp."""

import shutil

import pytest

from helpers.files import environment_variables
from helpers.settings import TrainingSettings


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_model, text_file):
    """Return the folder of runs with one run of the tiny model."""
    from helpers.training import fine_tune

    folder = tmp_path_factory.mktemp("trained")
    with environment_variables({"COURSE_RUNS": str(folder)}):
        fine_tune(
            TrainingSettings(
                run="tiny", model_name_or_path=str(tiny_model), source=str(text_file), block_size=32,
                learning_rate=1e-3, num_train_epochs=0.5, sample_prompt="", mixed_precision="no",
            )
        )  # fmt: skip
    return folder


@pytest.fixture
def run(trained, runs):
    """Return the name of a finished run."""
    shutil.copytree(trained, runs)
    return "tiny"
