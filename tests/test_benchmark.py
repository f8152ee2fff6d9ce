"""Figures come from real runs in processes of their own, and verdicts say what they show."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from tfedge.benchmark import benchmark, host_facts
from tfedge.benchmark.process import Child
from tfedge.benchmark.verdicts import verdicts_of
from tfedge.errors import DelegateError, FileFormatError, SettingsError


@pytest.fixture(scope="module")
def large_file(build_file) -> bytes:
    """A dense layer with 8 MB of weights."""
    weights = np.random.default_rng(0).standard_normal((1000, 2000)).astype(np.float32)
    return build_file(
        [
            {"name": "x", "shape": (1, 2000)},
            {"name": "w", "shape": (1000, 2000), "data": weights},
            {"name": "y", "shape": (1, 1000)},
        ],
        [("FULLY_CONNECTED", (0, 1, -1), (2,))],
    )


@pytest.fixture(scope="module")
def report(build_file, large_file):
    rows = [{"name": name, "shape": (1, 4)} for name in "xy"]
    small = build_file(rows, [("LOGISTIC", (0,), (1,))])
    seen: list[tuple[int, int]] = []
    models = {"small": small, "large": large_file}
    done = benchmark(
        models, delegates=("xnnpack", "none"), runs=30, warmup=3, progress=lambda *a: seen.append(a)
    )
    return SimpleNamespace(models=models, done=done, seen=seen)


def test_every_model_has_a_row_for_every_delegate(report):
    assert [(row.model, row.actual) for row in report.done.rows] == [
        ("small", "xnnpack"),
        ("large", "xnnpack"),
        ("small", "none"),
        ("large", "none"),
    ]
    for row in report.done.rows:
        assert (row.runs, row.threads) == (30, 1)
        assert row.size_bytes == len(report.models[row.model])
        assert row.nodes_delegated == (1 if row.delegate == "xnnpack" else 0)


def test_quantiles_rise_and_everything_takes_time(report):
    for row in report.done.rows:
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.mean_ms > 0 and row.init_ms > 0


def test_a_large_model_takes_more_time_and_its_own_size_in_memory(report):
    small, large, *_ = report.done.rows
    assert large.p50_ms > 3 * small.p50_ms
    assert large.peak_memory_bytes > large.size_bytes > small.peak_memory_bytes - 8_000_000
    assert any("large is" in line and "slower than small" in line for line in report.done.verdicts)


def test_progress_ends_at_the_planned_number_of_runs(report):
    assert report.seen[-1] == (120, 120)
    assert [done for done, _ in report.seen] == sorted(done for done, _ in report.seen)


def test_the_report_is_json(report):
    content = json.loads(json.dumps(report.done.to_dict()))
    assert content["host"]["cores"] >= 1 and len(content["rows"]) == 4
    assert content["verdicts"]


def test_a_row_stops_when_its_seconds_are_used_up(large_file):
    (row,) = benchmark(large_file, runs=1_000_000, seconds=0.2).rows
    assert 1 <= row.runs < 100_000
    assert row.model == "model 1"


def test_paths_are_named_by_their_stems_or_in_full_where_these_are_equal(large_file, tmp_path):
    paths = [tmp_path / "a" / "net.tflite", tmp_path / "b" / "net.tflite", tmp_path / "c.tflite"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(large_file)
    rows = benchmark(paths, runs=1, warmup=1).rows
    assert [row.model for row in rows] == [str(paths[0]), str(paths[1]), "c"]


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"allow_software": True}, SettingsError, "settings of the delegate 'gpu'.*Add 'gpu'"),
        ({"precision": "fp16"}, SettingsError, "precision='fp16' and delegates=.'xnnpack'."),
        ({"delegates": ("gpu",), "precision": "fp8"}, SettingsError, "Received: 'fp8'"),
        ({"delegates": ("xnnpak",)}, SettingsError, "Did you mean 'xnnpack'"),
        ({"delegates": "xnnpack"}, SettingsError, "sequence such as"),
        ({"threads": 2}, SettingsError, "sequence of numbers"),
        ({"threads": (0,)}, SettingsError, r"Received: \(0,\)"),
        ({"threads": ("two",)}, SettingsError, "sequence of numbers"),
        ({"seconds": "long"}, SettingsError, "`seconds` must be above 0"),
        ({"runs": 0}, SettingsError, "`runs` is a whole number of at least 1"),
        ({"warmup": -1}, SettingsError, "`warmup`"),
        ({"seconds": 0}, SettingsError, "`seconds` must be above 0"),
        ({"models": []}, SettingsError, "at least one model"),
        ({"models": ["a.tflite", "a.tflite"]}, SettingsError, "Received twice"),
        ({"models": "nowhere.tflite"}, FileFormatError, "no such file"),
        ({"models": bytes(36)}, FileFormatError, "identifier"),
    ],
)
def test_wrong_settings_are_named_before_anything_runs(large_file, settings, error, match):
    with pytest.raises(error, match=match):
        benchmark(**{"models": large_file, **settings})


def test_an_error_in_the_child_is_raised_here(build_file):
    rows = [{"name": name, "shape": (1, 4)} for name in "xy"]
    data = build_file(rows, [("ZEROS_LIKE", (0,), (1,))])
    with pytest.raises(DelegateError, match="XNNPACK took none of the operators of zeros"):
        benchmark({"zeros": data})


def test_a_row_that_cannot_run_says_why_and_does_not_stop_the_others(build_file, large_file):
    rows = [{"name": name, "shape": (1, 4)} for name in "xy"]
    models = {"zeros": build_file(rows, [("ZEROS_LIKE", (0,), (1,))]), "large": large_file}
    report = benchmark(models, delegates=("none", "xnnpack"), runs=2, warmup=1)
    assert [(row.model, row.delegate) for row in report.rows] == [
        ("zeros", "none"),
        ("large", "none"),
        ("large", "xnnpack"),
    ]
    (failure,) = report.failures
    assert (failure.model, failure.delegate, failure.threads) == ("zeros", "xnnpack", 1)
    assert "ZEROS_LIKE" in failure.reason and failure.reason in str(report)


def test_a_process_that_dies_is_reported_with_its_signal(large_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(large_file)
    request = {"delegate": "xnnpack", "threads": 1}
    job = {"name": "m", "path": str(path), **request, "seed": 0, "request": request}
    with Child(job) as child:
        child.open()
        os.kill(child.pid, signal.SIGSEGV)
        with pytest.raises(DelegateError, match="'m' on 'xnnpack' ended with SIGSEGV"):
            child.run(10)


def row(model: str, p50_ms: float, actual: str = "xnnpack", threads: int = 1) -> SimpleNamespace:
    return SimpleNamespace(model=model, p50_ms=p50_ms, actual=actual, threads=threads)


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        ([row("float32", 1.0)], ()),
        (
            [row("float32", 1.0), row("int8", 1.7)],
            ("int8 is 1.7× slower than float32 on this host (xnnpack, 1 thread)",),
        ),
        (
            [row("float32", 1.0), row("int8", 0.98)],
            ("int8 is as fast as float32 on this host (xnnpack, 1 thread)",),
        ),
        (
            [row("m", 1.0), row("m", 3.0, actual="none")],
            ("m on none is 3.0× slower than on xnnpack (1 thread)",),
        ),
        (
            [row("m", 2.0, threads=4), row("m", 3.0, actual="none"), row("m", 1.0, actual="gpu")],
            ("m on the GPU is 2.0× faster than on xnnpack with 4 threads",),
        ),
        (
            [row("m", 1.0), row("m", 0.5, threads=2)],
            ("m with 2 threads is 2.0× faster than with 1 (xnnpack)",),
        ),
    ],
)
def test_verdicts_say_what_the_medians_show(rows, verdicts):
    assert verdicts_of(rows) == verdicts


def test_host_facts_name_the_machine():
    facts = host_facts()
    assert facts.cores >= 1
    assert facts.cpu and facts.arch and facts.os
