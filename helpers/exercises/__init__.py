"""The exercises: `check("data-1", answer)` says right, not yet (with a hint) or not done yet; `progress` lists all.

`checks` tests the answers, `verdicts` returns the verdict and stores it. A check never stops the notebook: an exception
in the answer becomes a hint.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"verdicts": "check progress"})
