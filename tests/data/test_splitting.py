import numpy as np
import pytest

from helpers.data.splitting import LEFT_OUT, TEST, TRAIN, UNDECIDED, VALIDATION, assign_parts, split_by_position
from helpers.settings import DataSettings, SettingsError


def split(given, *, is_first=None, group=None, **settings):
    n = len(given)
    is_first = np.ones(n, bool) if is_first is None else np.array(is_first)
    group = np.arange(n) if group is None else np.array(group)
    return assign_parts(np.array(given, np.int8), is_first, group, DataSettings(**settings))


def test_shares_are_exact_and_the_seed_determines_the_split():
    assert np.bincount(split([-1] * 5)).tolist() == [3, 1, 1], "a tenth of five documents is rounded up to one"
    assert np.bincount(split([-1] * 5, validation_share=0.4, test_share=0.4)).tolist() == [1, 2, 2]
    code = split([-1] * 100, validation_share=0.2, test_share=0.1)
    assert [(code == part).sum() for part in (TRAIN, VALIDATION, TEST)] == [70, 20, 10]
    assert code.tolist() == split([-1] * 100, validation_share=0.2, test_share=0.1).tolist()
    assert code.tolist() != split([-1] * 100, validation_share=0.2, test_share=0.1, seed=1).tolist()


def test_a_group_of_near_duplicates_stays_in_one_split():
    group = np.repeat(np.arange(0, 90, 3), 3)
    code = split([-1] * 90, group=group)
    assert all(len(set(code[group == name])) == 1 for name in set(group))
    assert set(code) == {TRAIN, VALIDATION, TEST}


@pytest.mark.parametrize(
    ("group", "shares"),
    [
        ([0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8], (0.1, 0.1)),
        ([0] * 98 + [98, 99], (0.1, 0.1)),  # both single documents would fit into the test split
        ([0, 1, 2, 3], (0.4, 0.4)),  # after rounding, validation and test want two each
    ],
)
def test_no_split_is_empty_for_any_groups_and_shares(group, shares):
    code = split([-1] * len(group), group=group, validation_share=shares[0], test_share=shares[1])
    assert set(code) == {TRAIN, VALIDATION, TEST}


def test_near_duplicates_of_the_test_split_are_left_out_of_the_other_splits():
    code = split([TRAIN, TRAIN, VALIDATION, TEST], group=[0, 1, 1, 1])
    assert code.tolist() == [TRAIN, LEFT_OUT, LEFT_OUT, TEST]


def test_remove_keeps_one_near_duplicate_and_prefers_the_one_in_the_test_split():
    code = split([TRAIN, TRAIN, VALIDATION, TEST], group=[0, 0, 2, 2], near_duplicates="remove")
    assert code.tolist() == [TRAIN, LEFT_OUT, LEFT_OUT, TEST]


def test_a_split_missing_from_the_source_is_drawn_from_its_training_text():
    code = split([TRAIN] * 20 + [TEST] * 5)
    assert (code[:20] == VALIDATION).sum() == 2
    assert (code[20:] == TEST).all()


def test_too_few_documents_are_refused():
    with pytest.raises(SettingsError, match="has 2 different documents for 3 parts: give more documents, or set"):
        split([-1, -1, -1], is_first=[True, True, False])
    with pytest.raises(SettingsError, match="give more documents, a larger max_tokens, or set"):
        split([-1, -1], max_tokens=100)
    with pytest.raises(SettingsError, match="has 1 different document for 2 parts: give more"):
        split([TRAIN, TEST, TEST])


@pytest.mark.parametrize(
    ("sizes", "passages"),
    [
        ([10] * 100, [70, 20, 10]),
        ([1000, *[10] * 30, 700], [30, 1, 1]),
        ([1000, 5, 5], [1, 1, 1]),
        ([5] * 4, [2, 1, 1]),
    ],
)
def test_a_continuous_text_is_split_by_position_into_train_validation_and_test(sizes, passages):
    settings = DataSettings(validation_share=0.2, test_share=0.1)
    part = split_by_position(np.array(sizes), np.full(len(sizes), UNDECIDED, np.int8), settings).part
    assert part.tolist() == np.repeat([TRAIN, VALIDATION, TEST], passages).tolist()


def test_a_continuous_text_keeps_its_own_splits_and_gets_the_missing_one():
    given = np.array([TEST, TEST, *[TRAIN] * 8], np.int8)
    split = split_by_position(np.full(10, 10), given, DataSettings(validation_share=0.25))
    assert split.part.tolist() == [TEST, TEST, *[TRAIN] * 6, VALIDATION, VALIDATION]
    assert split.is_first.all()


def test_a_text_of_two_passages_is_too_short_to_be_split():
    with pytest.raises(SettingsError, match="one continuous text of 20 bytes, which is too short"):
        split_by_position(np.array([10, 10]), np.full(2, UNDECIDED, np.int8), DataSettings())
