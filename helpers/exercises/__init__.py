"""The exercises: `check("data-1", answer)` says right, not yet (with a hint) or not done yet; `progress` lists all.

`checks` knows what each exercise asks for, `verdicts` gives the verdict and keeps it. A check never stops the notebook:
what the answer raises becomes a hint.
"""

from helpers import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"verdicts": "check progress"})
