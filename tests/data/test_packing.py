import numpy as np
import pytest

from helpers.data.packing import IGNORED, check_enough, cut_blocks, training_stream
from helpers.settings import SettingsError


def test_prompts_are_masked_in_the_labels_and_blocks_without_labels_are_dropped():
    is_completion = np.isin(np.arange(14), [4, 8, 9, 10, 13])
    blocks, rest = cut_blocks(training_stream(np.arange(14), ~is_completion), 4)
    assert blocks.tolist() == [[[8, 9, 10, 11]], [[IGNORED, 9, 10, IGNORED]]], "nothing predicts the first token"
    assert rest.tolist() == [[12, 13], [IGNORED, 13]]


def test_a_split_shorter_than_a_block_is_refused_with_advice():
    check_enough("train", 8, 8)
    with pytest.raises(SettingsError, match=r"The train text has 7 tokens, .* of 8: use more text or a smaller block"):
        check_enough("train", 7, 8)
    with pytest.raises(SettingsError, match="use a larger validation_share, more text or"):
        check_enough("validation", 7, 8)
