"""Notebook 02: any text becomes documents, a split, and blocks of tokens.

From the first step to the last: `sources` reads documents, `tokens` encodes them, `duplicates` and `splitting` assign
them to parts, `leakage` measures what the test shares with the training text, `writing` makes the files of a run,
`facts` counts, and `preparation` does all of it. `streaming` makes blocks while a training reads them.
`quality_report` and `token_view` show text in the notebook.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "preparation": (
            "PreparedData load_documents load_run_tokenizer open_prepared prepare refuse_missing sample_settings "
            "split_documents token_blocks"
        ),
        "streaming": "BlockStream open_training_blocks",
        "quality_report": "plot_packing plot_report report",
        "sources.chat": "render_chat",
        "token_view": "view_tokens",
    },
)
