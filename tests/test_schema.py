import pytest

from helpers.settings import (
    DataSettings,
    EvaluationSettings,
    SettingsError,
    TrainingSettings,
    check_values,
)


def test_two_faults_are_two_sentences():
    with pytest.raises(SettingsError) as error:
        TrainingSettings(learning_rate=-1, block_size=0)
    assert len(str(error.value).splitlines()) == 2


def test_a_setting_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        TrainingSettings().learning_rate = 1.0


@pytest.mark.parametrize("name", ["lora_r", "num_train_epochs"])
def test_a_truth_value_is_no_number(name):
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed: it must be a .*number"):
        TrainingSettings(**{name: True})
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed"):
        check_values({name: True})  # as in a study file


def test_a_notebook_gives_its_variables_and_nothing_else():
    namespace = {"run": "mine", "block_size": 64, "math": object(), "In": ["", "x = 1"]}
    result = DataSettings.from_notebook(namespace)
    assert (result.run, result.block_size, result.seed) == ("mine", 64, DataSettings().seed)


def test_a_name_that_papermill_injected_and_nobody_knows_is_an_error():
    namespace = {"blok_size": 64, "In": ["", "# Parameters\nblok_size = 64\n"]}
    with pytest.raises(SettingsError, match="did you mean 'block_size'"):
        DataSettings.from_notebook(namespace)


def test_a_setting_of_another_notebook_is_named_as_one():
    namespace = {"learning_rate": 1e-3, "In": ["", "# Parameters\nlearning_rate = 1e-3\n"]}
    with pytest.raises(SettingsError, match="learning_rate is a setting of another notebook"):
        DataSettings.from_notebook(namespace)


def test_a_part_takes_only_what_it_declares():
    part = TrainingSettings(run="mine", block_size=64).part(DataSettings)
    assert type(part) is DataSettings
    assert (part.run, part.block_size) == ("mine", 64)


def test_every_setting_has_help_and_is_shown_escaped():
    shown = EvaluationSettings(prompt="<script>alert(1)</script>")
    assert all(row["help"] for row in shown.rows() + TrainingSettings().rows())
    assert "<script>" not in shown._repr_html_()


def test_settings_as_text_are_those_that_differ():
    rows = str(TrainingSettings(learning_rate=1e-3, seed=7)).splitlines()
    assert [row.split()[:2] for row in rows] == [["name", "value"], ["seed", "7"], ["learning_rate", "0.001"]]
    assert str(TrainingSettings()) == "Every setting has its default value."


def test_a_message_has_the_beginning_of_a_long_name_and_all_of_its_own_words():
    error = SettingsError(f"There is no run {'x' * 5000!r} in {'/runs' * 10}: " + "word " * 200)
    assert str(error) == f"There is no run '{'x' * 998}… in {'/runs' * 10}: " + "word " * 200
