"""Notebook 02: any text becomes documents, a split, and blocks of tokens.

- `sources`: any file, folder or data set of the Hub, as a stream of documents
- `tokens`, `duplicates`, `splitting`, `leakage`: encode documents, assign them to parts, and measure what these share
- `packing`: cut tokens into blocks, in whose labels prompts may be left out of the loss
- `writing`, `preparation`: make the data in a run's folder, in two passes over any amount of text; all steps at once
- `facts`: the counts and notes of `data.json`
- `run_data`: open the data of a run, and tell whether they are those that settings ask for
- `text_size`: how many tokens a text has, before it is read
- `streaming`: make blocks while a training reads them
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
        "text_size": "training_tokens",
        "streaming": "BlockStream open_training_blocks",
        "quality_report": "plot_packing plot_report report",
        "sources.chat": "render_chat",
        "token_view": "view_tokens",
    },
)
