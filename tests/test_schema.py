import pytest

from helpers.data import load_documents, load_run_tokenizer, prepare
from helpers.evaluation import (
    compare_decodings,
    compare_with_base,
    fill_prompt,
    generate,
    measure_copying,
    measure_forgetting,
    measure_published_protocol,
)
from helpers.settings import (
    DataSettings,
    EvaluationSettings,
    SettingsError,
    TrainingSettings,
    check_values,
    run_folder,
)
from helpers.training import chosen_precision, fine_tune, plan_run
from helpers.widgets import DataPanel, TrainingPanel


def test_two_errors_give_two_sentences():
    with pytest.raises(SettingsError) as error:
        TrainingSettings(learning_rate=-1, block_size=0)
    assert len(str(error.value).splitlines()) == 2


def test_settings_are_immutable_and_the_error_says_how_to_make_a_copy():
    with pytest.raises(SettingsError, match=r"settings\.model_copy\(update={'learning_rate': 1\.0}\)"):
        TrainingSettings().learning_rate = 1.0


def test_a_copy_refuses_a_name_that_is_no_setting():
    assert TrainingSettings().model_copy(update={"seed": 3}) == TrainingSettings(seed=3)
    with pytest.raises(SettingsError, match="no setting 'learning_rte'; did you mean 'learning_rate'"):
        TrainingSettings().model_copy(update={"learning_rte": 1e-4})


USES = (
    fine_tune, prepare, plan_run, chosen_precision, load_documents, load_run_tokenizer, compare_with_base,
    measure_forgetting, measure_copying, measure_published_protocol, compare_decodings, fill_prompt, DataPanel,
    TrainingPanel,
)  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("a", r"settings = 'a' is not allowed: give \w+Settings\(run='mine'\)"),
        (None, "settings = None is not allowed"),
    ],
)
def test_what_is_given_instead_of_settings_is_named(use, given, fault):
    with pytest.raises(SettingsError, match=fault):
        use(given)


def test_settings_of_another_kind_are_named(tiny):
    for use in (fill_prompt, lambda settings: generate(*tiny, ["The"], settings)):
        with pytest.raises(SettingsError, match=r"settings = TrainingSettings\(.* give EvaluationSettings\("):
            use(TrainingSettings())
    with pytest.raises(SettingsError, match=r"run = TrainingSettings\(.*… is not a plain name"):
        run_folder(TrainingSettings())


def test_a_copy_with_a_wrong_value_is_not_trained():
    with pytest.raises(SettingsError, match="block_size = 'long' is not allowed"):
        fine_tune(TrainingSettings().model_copy(update={"block_size": "long"}))


@pytest.mark.parametrize("name", ["lora_r", "num_train_epochs"])
def test_a_boolean_is_not_a_number(name):
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed: it must be a .*number"):
        TrainingSettings(**{name: True})
    with pytest.raises(SettingsError, match=f"{name} = True is not allowed"):
        check_values({name: True})  # as in a study file


def test_from_notebook_reads_only_variables_that_are_settings():
    namespace = {"run": "mine", "block_size": 64, "math": object(), "In": ["", "x = 1"]}
    result = DataSettings.from_notebook(namespace)
    assert (result.run, result.block_size, result.seed) == ("mine", 64, DataSettings().seed)


def test_an_unknown_parameter_injected_by_papermill_is_an_error():
    namespace = {"blok_size": 64, "In": ["", "# Parameters\nblok_size = 64\n"]}
    with pytest.raises(SettingsError, match="did you mean 'block_size'"):
        DataSettings.from_notebook(namespace)


def test_a_setting_of_another_notebook_is_reported_as_such():
    namespace = {"learning_rate": 1e-3, "In": ["", "# Parameters\nlearning_rate = 1e-3\n"]}
    with pytest.raises(SettingsError, match="learning_rate is a setting of another notebook"):
        DataSettings.from_notebook(namespace)


def test_a_part_has_only_the_settings_it_declares():
    part = TrainingSettings(run="mine", block_size=64).part(DataSettings)
    assert type(part) is DataSettings
    assert (part.run, part.block_size) == ("mine", 64)


def test_every_setting_has_help_and_is_shown_escaped():
    shown = EvaluationSettings(prompt="<script>alert(1)</script>")
    assert all(row["help"] for row in shown.rows() + TrainingSettings().rows())
    assert "<script>" not in shown._repr_html_()


def test_settings_as_text_show_only_changed_values():
    rows = str(TrainingSettings(learning_rate=1e-3, seed=7)).splitlines()
    assert [row.split()[:2] for row in rows] == [["name", "value"], ["seed", "7"], ["learning_rate", "0.001"]]
    assert str(TrainingSettings()) == "Every setting has its default value."


def test_an_error_shortens_a_long_value_but_not_its_own_words():
    error = SettingsError(f"There is no run {'x' * 5000!r} in {'/runs' * 10}: " + "word " * 200)
    assert str(error) == f"There is no run '{'x' * 998}… in {'/runs' * 10}: " + "word " * 200
