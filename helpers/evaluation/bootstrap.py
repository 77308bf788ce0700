"""How much a metric would change with other documents: the bootstrap, paired for two models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


def resample_sums(*columns: "np.ndarray", seed: int) -> list["np.ndarray"]:
    """Return the sums of each column (documents,) over `RESAMPLES` draws of as many documents, with replacement.

    All columns use the same draws, so what two models share on a document cancels in their difference. The result is
    sums, because a metric of all documents is a ratio of sums: a mean over documents would give a short one as much
    weight as a long one.
    """
    import numpy as np

    random, n = np.random.default_rng(seed), len(columns[0])
    sums = np.empty((len(columns), RESAMPLES))
    for i in range(RESAMPLES):  # one draw at a time: all at once would take RESAMPLES * n indexes of memory
        drawn = random.integers(n, size=n)
        sums[:, i] = [column[drawn].sum() for column in columns]
    return list(sums)


def compute_interval(values: "np.ndarray") -> list[float]:
    """Return the middle `CONFIDENCE` of some resampled values as [low, high]."""
    import numpy as np

    outside = (1 - CONFIDENCE) / 2
    return np.quantile(values, [outside, 1 - outside]).tolist()
