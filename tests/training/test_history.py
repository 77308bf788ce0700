from helpers.training.history import history_rows, kept_eval_loss, read_history, write_history


def test_a_history_keeps_losses_and_samples_and_nothing_else():
    log = [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "x": 1}, {"step": 2, "sample": "The"}, {"step": 2, "runtime": 3}]
    assert history_rows(log) == [{"step": 1, "loss": 2.0, "grad_norm": 1.0}, {"step": 2, "sample": "The"}]


def test_a_history_is_read_as_it_was_written(tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "sample": "línea\nnueva\u2028"}]
    write_history(tmp_path, rows)
    assert read_history(tmp_path) == rows


def test_a_run_that_has_not_begun_has_no_rows_and_no_loss(tmp_path):
    assert read_history(tmp_path) == []
    assert kept_eval_loss([{"step": 1, "loss": 2.0}], early_stopping_patience=0) is None
