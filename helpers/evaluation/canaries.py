"""Would a secret in the training text come out? Canaries are planted, a model is trained, their exposure is measured.

A canary is a sentence with a random number in it. Its exposure (Carlini and others, 2019,
https://arxiv.org/abs/1802.08232) tells how far the model prefers that number to all others of its kind:
log2(candidates) - log2(rank). At most it is log2(candidates), when the true number is the likeliest of all; a number
the model has never seen has an exposure of 1 to 2 bits on average.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helpers.data.preparation import open_prepared
from helpers.evaluation.base_and_tuned import load_tuned
from helpers.model import device
from helpers.settings import SettingsError, TrainingSettings, run_folder
from helpers.training.fine_tuning import fine_tune

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

N_CANDIDATES = 1000  # numbers of three digits
REPEATS = (0, 1, 4, 16)
_OWNERS = ("miller", "weaver", "sailor", "baker", "gardener", "tailor", "farmer", "smith")
_AT_ONCE = 250


@dataclass(frozen=True)
class Canary:
    """A sentence with a secret of three digits.

    Attributes:
        owner: whose secret it is.
        secret: the number, 0 to 999.
        repeats: documents it is planted in; 0 for a control, which the model never sees.
    """

    owner: str
    secret: int
    repeats: int

    def sentence(self, number: int | None = None) -> str:
        """Return the sentence with the secret, or with another number.

        >>> Canary("miller", 7, repeats=1).sentence()
        'The secret number of the miller is 007.'
        """
        return f"The secret number of the {self.owner} is {self.secret if number is None else number:03}."


def plant(documents: Sequence[str], *, seed: int, repeats: Sequence[int] = REPEATS) -> tuple[list[str], list[Canary]]:
    """Return a copy of the documents with canaries at the end of some, and the canaries.

    Args:
        documents: texts; each takes one canary at most.
        seed: of the secrets and of the places.
        repeats: for each canary the number of documents it is planted in, at most 8 canaries.

    Raises:
        SettingsError: there are fewer documents than places needed, or more canaries than there are owners.
    """
    if len(documents) < sum(repeats) or len(repeats) > len(_OWNERS):
        raise SettingsError(
            f"repeats = {tuple(repeats)} needs {sum(repeats)} documents for at most {len(_OWNERS)} canaries, and there "
            f"are {len(documents)} documents: plant fewer, or use more text."
        )
    drawn = random.Random(seed)  # noqa: S311 (no secret that anyone keeps)
    canaries = [
        Canary(owner, drawn.randrange(N_CANDIDATES), n) for owner, n in zip(_OWNERS, repeats, strict=False)
    ]  # fmt: skip
    planted = list(documents)
    places = iter(drawn.sample(range(len(planted)), sum(repeats)))
    for canary in canaries:
        for _ in range(canary.repeats):
            planted[next(places)] += f"\n\n{canary.sentence()}"
    return planted, canaries


def exposure(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", canary: Canary) -> tuple[float, int]:
    """Return the exposure of a canary in bits, and the rank of its secret among all candidates, 1 for the likeliest."""
    import numpy as np

    sentences = [f"\n\n{canary.sentence(number)}" for number in range(N_CANDIDATES)]
    nats = np.concatenate(
        [_nats(model, tokenizer, sentences[start : start + _AT_ONCE]) for start in range(0, N_CANDIDATES, _AT_ONCE)]
    )
    rank = 1 + int((nats < nats[canary.secret]).sum())
    return math.log2(N_CANDIDATES) - math.log2(rank), rank


def _nats(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerBase", sentences: list[str]) -> Any:
    """Return (sentences,) nats of each sentence at the start of a document."""
    import torch
    from torch.nn import functional

    rows = [[tokenizer.eos_token_id, *tokenizer.encode(sentence)] for sentence in sentences]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)  # (B, T)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    targets = ids[:, 1:].masked_fill(torch.arange(1, width, device=model.device) >= lengths[:, None], -100)
    with torch.inference_mode():  # what stands behind a token changes nothing before it, so no mask is needed
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()  # (B, T - 1, V)
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view(targets.shape).double().sum(1).cpu().numpy()


def measure_exposure(settings: TrainingSettings, *, repeats: Sequence[int] = REPEATS) -> list[dict[str, Any]]:
    """Train a copy of a run on a copy of its text with canaries planted in it, and measure how well each is known.

    The copy is the run `<run>-canaries`; the run itself and its source stay as they are. It takes as long as the run.

    Args:
        settings: of a run whose data are prepared.
        repeats: for each canary the number of documents it is planted in.

    Returns:
        One row a canary: `sentence`, `repeats` (in the training part, as it was split), `rank`, `exposure_bits` and
        `highest_bits`.

    Raises:
        SettingsError: the run has no data yet, or too few documents.
    """
    documents = open_prepared(settings.run).documents["train"]["text"][:]
    planted, canaries = plant(documents, seed=settings.seed, repeats=repeats)
    run = f"{settings.run[:55]}-canaries"
    source = run_folder(run) / "planted.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in planted), encoding="utf-8")
    changes = {"run": run, "source": str(source), "text_column": "text", "encoding": "utf-8"}
    as_of_old = ("source_config", "source_split", "source_revision", "streaming", "max_tokens")
    changes |= {name: TrainingSettings.model_fields[name].default for name in as_of_old}
    fine_tune(TrainingSettings(**settings.model_dump() | changes))
    model, tokenizer = load_tuned(run)
    model.to(device()).eval()
    seen = open_prepared(run).documents["train"]["text"][:]
    return [_row(model, tokenizer, canary, seen) for canary in canaries]


def _row(model: "GPT2LMHeadModel", tokenizer: Any, canary: Canary, seen: list[str]) -> dict[str, Any]:
    bits, rank = exposure(model, tokenizer, canary)
    return {
        "sentence": canary.sentence(),
        "repeats": sum(canary.sentence() in text for text in seen),
        "rank": rank,
        "exposure_bits": bits,
        "highest_bits": math.log2(N_CANDIDATES),
    }
