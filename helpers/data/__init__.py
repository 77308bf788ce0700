"""Notebook 02: any text becomes documents, a split, and blocks of tokens."""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "preparation": "PreparedData load_documents open_prepared prepare split_documents token_blocks",
        "data_plots": "plot_packing plot_report",
        "quality": "report useful_share",
        "token_view": "merge_steps view_tokens",
    },
)
