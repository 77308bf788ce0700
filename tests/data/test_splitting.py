import numpy as np
import pytest

from helpers.data.splitting import LEFT_OUT, TEST, TRAIN, VALIDATION, assign
from helpers.settings import DataSettings, SettingsError


def split(parts, *, first=None, group=None, **settings):
    n = len(parts)
    first = np.ones(n, bool) if first is None else np.array(first)
    group = np.arange(n) if group is None else np.array(group)
    return assign(np.array(parts, np.int8), first, group, DataSettings(**settings))


def test_shares_are_exact_and_the_seed_decides():
    code = split([-1] * 100, validation_share=0.2, test_share=0.1)
    assert [(code == part).sum() for part in (TRAIN, VALIDATION, TEST)] == [70, 20, 10]
    assert code.tolist() == split([-1] * 100, validation_share=0.2, test_share=0.1).tolist()
    assert code.tolist() != split([-1] * 100, validation_share=0.2, test_share=0.1, seed=1).tolist()


def test_a_group_is_never_torn():
    group = np.repeat(np.arange(0, 90, 3), 3)
    code = split([-1] * 90, group=group)
    assert all(len(set(code[group == name])) == 1 for name in set(group))
    assert set(code) == {TRAIN, VALIDATION, TEST}


def test_groups_larger_than_a_part_leave_none_empty():
    code = split([-1] * 12, group=np.repeat([0, 4, 8], 4))
    assert set(code) == {TRAIN, VALIDATION, TEST}


def test_what_is_near_the_test_leaves_the_other_parts():
    code = split([TRAIN, TRAIN, VALIDATION, TEST], group=[0, 1, 1, 1])
    assert code.tolist() == [TRAIN, LEFT_OUT, LEFT_OUT, TEST]


def test_removed_near_duplicates_leave_one_and_the_tests_first():
    code = split([TRAIN, TRAIN, VALIDATION, TEST], group=[0, 0, 2, 2], near_duplicates="remove")
    assert code.tolist() == [TRAIN, LEFT_OUT, LEFT_OUT, TEST]


def test_the_part_that_a_source_does_not_bring_is_drawn_from_its_training_text():
    code = split([TRAIN] * 20 + [TEST] * 5)
    assert (code[:20] == VALIDATION).sum() == 2
    assert (code[20:] == TEST).all()


def test_too_few_are_refused():
    with pytest.raises(SettingsError, match="has 2 different documents: three parts need at least 3"):
        split([-1, -1, -1], first=[True, True, False])
