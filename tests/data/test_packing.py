import numpy as np
import pytest

from helpers.data.packing import IGNORED, check_enough, cut_blocks, training_stream
from helpers.settings import SettingsError


def test_prompts_are_left_out_of_the_labels_and_blocks_of_prompts_alone_are_not_kept():
    stream = training_stream(np.arange(10), np.arange(10) < 6)  # six tokens of a prompt, four of a completion
    blocks, rest = cut_blocks(stream, 4)
    assert blocks.tolist() == [[[4, 5, 6, 7]], [[IGNORED, IGNORED, 6, 7]]]
    assert rest.tolist() == [[8, 9], [8, 9]]


def test_a_split_shorter_than_a_block_is_refused_with_advice():
    check_enough("train", 8, 8)
    with pytest.raises(SettingsError, match=r"The train text has 7 tokens, .* of 8: use more text or a smaller block"):
        check_enough("train", 7, 8)
    with pytest.raises(SettingsError, match="use a larger validation_share, more text or"):
        check_enough("validation", 7, 8)
