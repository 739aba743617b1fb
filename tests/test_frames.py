"""Curves for pandas: the same rows as `records`, and what pandas makes of them."""

import sys

import numpy as np
import pytest
from report_subjects import make_runs

pd = pytest.importorskip("pandas")


def make_mixed_runs():
    return make_runs(diverged=(1,), stopped=(2,), hyper=({"momentum": 0.0}, {"momentum": 0.9}))


def test_frame_has_the_rows_of_records_in_their_order():
    runs = make_mixed_runs()
    frame, records = runs.to_pandas(), runs.records()
    assert list(frame.columns) == list(records[0])
    pd.testing.assert_frame_equal(frame, pd.DataFrame(records), check_dtype=False)


def test_epochs_that_are_no_whole_steps_are_those_of_records():
    runs = make_runs()
    object.__setattr__(runs, "steps_per_epoch", 10 / 3)
    assert runs.to_pandas()["epoch"].tolist() == [row["epoch"] for row in runs.records()]


def test_mean_over_seeds_is_what_pandas_says():
    runs = make_runs(seeds=3)
    last = runs.to_pandas().query("metric == 'val_loss' and step == 40")
    table = last.pivot_table("value", "lr", "schedule")
    np.testing.assert_allclose(table.to_numpy().ravel(), runs.metrics["val_loss"][-1].reshape(6, 3).mean(axis=1))


def test_epoch_that_is_unknown_is_missing():
    runs = make_runs()
    object.__setattr__(runs, "steps_per_epoch", None)
    assert runs.to_pandas()["epoch"].isna().all()


def test_parquet_file_has_the_same_frame(tmp_path):
    pytest.importorskip("pyarrow")
    runs = make_mixed_runs()
    path = runs.to_parquet(tmp_path / "runs.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), runs.to_pandas(), check_dtype=False)


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("pyarrow", "to_parquet")])
def test_package_that_is_missing_is_named_in_one_line(package, method, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [tmp_path / "runs.parquet"] if method == "to_parquet" else []
    with pytest.raises(ImportError, match=r"pip install 'vecsweep\[pandas\]'") as raised:
        getattr(make_runs(), method)(*arguments)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
