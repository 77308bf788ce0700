"""What saves memory, measured and predicted."""

from itertools import pairwise

from helpers.troubleshooting import measure_savings, predict_batches


def test_each_advice_saves_memory():
    peaks = {row["advice"]: row["peak_mib"] for row in measure_savings(batch=2, length=128)}
    unchanged = peaks.pop("as it is")
    assert len(peaks) == 6
    assert all(peak < unchanged for name, peak in peaks.items() if name != "batch 2, more passes")
    assert peaks["batch 1, more passes"] < 0.6 * unchanged


def test_the_predicted_batch_grows_with_the_card_and_with_each_advice():
    rows = predict_batches()
    for row in rows:
        assert row["8 GB"] <= row["12 GB"] <= row["16 GB"]
    for less, more in pairwise(rows):
        assert less["12 GB"] <= more["12 GB"]
    assert 1 <= rows[0]["12 GB"] < rows[-1]["12 GB"]


def test_the_prediction_is_the_plan_that_a_run_gets():
    from helpers.settings import TrainingSettings
    from helpers.training import find_card, plan_run

    settings = TrainingSettings.from_preset("rtx-4070-ti")
    run = plan_run(settings, card=find_card("RTX 4070 Ti"))
    rows = {row["with"]: row for row in predict_batches([12])}
    assert rows["bf16, chunked loss"]["12 GB"] == run.largest_batch
