"""Notebook 02: any text becomes documents, a split, and blocks of tokens.

- `sources`: read any file, folder or Hub data set as a stream of documents
- `tokens`, `duplicates`, `splitting`, `leakage`: encode documents, assign them to parts, and measure the parts' overlap
- `packing`: cut tokens into blocks, optionally with labels that leave prompts out of the loss
- `writing`, `preparation`: write a run's data in two passes, for any amount of text; run all the steps at once
- `facts`: the counts and notes in `data.json`
- `run_data`: open a run's data, and check whether they match the settings
- `text_size`: estimate the number of tokens before the text is read
- `streaming`: make blocks while training reads them
- `in_memory`: the same steps one by one, for lessons and small texts
- `quality_report`, `token_view`: show text in the notebook
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "preparation": "prepare sample_settings",
        "run_data": "PreparedData load_run_tokenizer open_prepared refuse_missing",
        "in_memory": "load_documents split_documents token_blocks",
        "text_size": "count_tokens",
        "streaming": "BlockStream open_training_blocks",
        "quality_report": "plot_packing plot_report report",
        "sources.chat": "render_chat",
        "token_view": "view_tokens",
    },
)
