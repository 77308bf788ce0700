"""How far a figure would move had other documents been drawn: the bootstrap over documents, paired for two models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


def resampled_sums(*columns: "np.ndarray", seed: int) -> list["np.ndarray"]:
    """Return the sums of each column (documents,) over `RESAMPLES` draws of as many documents, with replacement."""
    import numpy as np

    random, n = np.random.default_rng(seed), len(columns[0])
    sums = np.empty((len(columns), RESAMPLES))
    for i in range(RESAMPLES):
        drawn = random.integers(n, size=n)
        sums[:, i] = [column[drawn].sum() for column in columns]
    return list(sums)


def interval(values: "np.ndarray") -> list[float]:
    """Return the middle `CONFIDENCE` of some resampled figures as [low, high]."""
    import numpy as np

    outside = (1 - CONFIDENCE) / 2
    return np.quantile(values, [outside, 1 - outside]).tolist()
