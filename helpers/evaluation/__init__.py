"""Notebook 04: base and tuned model on the same held-out text: measured, heard, searched for copies."""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "base_and_tuned": "compare forgetting measure_copying load_base load_tuned speaking",
        "scoring": "score",
        "generation": "generate",
        "canaries": "measure_exposure",
    },
)
