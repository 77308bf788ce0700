import numpy as np

from helpers.data.packing import IGNORED, cut_blocks, training_stream


def test_prompts_are_left_out_of_the_labels_and_blocks_of_prompts_alone_are_not_kept():
    stream = training_stream(np.arange(10), np.arange(10) < 6)  # six tokens of a prompt, four of a completion
    blocks, rest = cut_blocks(stream, 4)
    assert blocks.tolist() == [[[4, 5, 6, 7]], [[IGNORED, IGNORED, 6, 7]]]
    assert rest.tolist() == [[8, 9], [8, 9]]
