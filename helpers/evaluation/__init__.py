"""Notebook 04: compare the base model and the tuned model on the same held-out text.

- `base_and_tuned`: the comparisons of a run, each stored in its evaluation.json
- `intervals`: how certain a comparison of two models is
- `scoring`: perplexity and bits per byte with a sliding window
- `generation`: generate samples in batches, and compare decoding methods
- `sampling`: generate token by token, with the candidates, for the playground and the demo page
- `copying`: find runs of tokens that samples share with the training text
- `canaries`: measure how well a model knows secrets planted in its training text
- `record`: read and write evaluation.json
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base_and_tuned": (
            "Comparison compare_decodings compare_with_base fill_prompt load_base load_tuned measure_copying "
            "measure_forgetting measure_published_protocol opening"
        ),
        "scoring": "Score score",
        "generation": "generate",
        "canaries": "measure_exposure",
    },
)
