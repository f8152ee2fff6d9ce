import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import matplotlib
import numpy as np
import pytest

from tfedge.errors import DataError
from tfedge.page import read_report, render
from tfedge.report import (
    FileRecord,
    LayerRecord,
    RunReport,
    Skipped,
    StageReport,
    StepRecord,
    format_bytes,
)

HOST = {
    "cpu": "AMD EPYC 7763 64-Core Processor",
    "cores": 2,
    "arch": "x86_64",
    "os": "Linux 6.8.0",
    "python": "3.11.9",
    "governor": None,
    "load_average": 0.42,
}
VERSIONS = {"tfedge": "0.3.0", "tensorflow": "2.21.0", "keras": "3.15.1", "ai-edge-litert": "2.3.0"}
KERNELS = (
    ("stem", "Conv2D", (3, 3, 1, 16)),
    ("conv_1", "Conv2D", (3, 3, 16, 32)),
    ("depthwise_2", "DepthwiseConv2D", (3, 3, 32, 1)),
    ("pointwise_2", "Conv2D", (1, 1, 32, 48)),
    ("conv_3", "Conv2D", (3, 3, 48, 48)),
    ("pointwise_4", "Conv2D", (1, 1, 48, 64)),
    ("embed", "Dense", (64, 32)),
    ("hidden", "Dense", (256, 48)),
    ("classes", "Dense", (48, 10)),
)


def layer(name, kind, shape, sparsity, random):
    weights = random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, int(np.prod(shape)))
    limit = float(np.abs(weights).max())
    edges = np.linspace(-limit, limit, 31)
    kept = np.abs(weights) > np.quantile(np.abs(weights), sparsity) if sparsity else weights != 0
    return LayerRecord(
        layer=name,
        kind=kind,
        shape=shape,
        sparsity_before=0.0,
        sparsity_after=1 - float(kept.mean()),
        edges=tuple(edges.tolist()),
        before=tuple(np.histogram(weights, edges)[0].tolist()),
        after=tuple(np.histogram(weights[kept] * 1.08, edges)[0].tolist()),
    )


def epochs(count, start, end, random, *, accuracy=True):
    fall = np.geomspace(start, end, count)
    logs = {"loss": fall + random.normal(0, end / 20, count)}
    if accuracy:
        logs["accuracy"] = 1 - logs["loss"] / 9
    for name in list(logs):
        logs[f"val_{name}"] = logs[name] + (0.02 if name == "loss" else -0.004)
    return {name: tuple(float(value) for value in values) for name, values in logs.items()}


def measured(model, p50, size, nodes, delegate="xnnpack", threads=1):
    return {
        "model": model,
        "delegate": delegate,
        "actual": delegate,
        "threads": threads,
        "runtime": "ai-edge-litert 2.3.0",
        "init_ms": 0.9,
        "p50_ms": p50,
        "p90_ms": p50 * 1.09,
        "p99_ms": p50 * 1.61,
        "mean_ms": p50 * 1.02,
        "runs": 1000,
        "peak_memory_bytes": size * 4 + 81_000,
        "size_bytes": size,
        "nodes_delegated": nodes if delegate == "xnnpack" else 0,
        "nodes_total": nodes,
    }


def trial(sparsity, accuracy, gzip, outcome, *, final=False, random, reason=""):
    skipped = (
        Skipped(
            "depthwise_2", "depthwise kernels are pruned only where they are named in `layers`"
        ),
        *(Skipped(f"norm_{i}", "no kernel that can be pruned") for i in range(1, 5)),
        *(Skipped(name, "no kernel that can be pruned") for name in ("pool_1", "flatten", "drop")),
    )
    return StepRecord(
        step="1-prune",
        title=f"prune to {100 * sparsity:g} % zeros",
        outcome=outcome,
        reason=reason,
        settings={"sparsity": "auto"},
        strength={"sparsity": sparsity},
        figures={"accuracy": accuracy},
        drops={"accuracy": 533 / 539 - accuracy},
        size_bytes=184_520,
        gzip_bytes=gzip,
        sparsity=sparsity - 0.004,
        parameters=45_290,
        stage=StageReport(
            stage="prune",
            changed=tuple(name for name, kind, _ in KERNELS if kind != "DepthwiseConv2D"),
            skipped=skipped,
            metrics={"sparsity": sparsity},
            notes=("The last update of the mask was in step 168 of 210.",) if final else (),
        ),
        epochs=epochs(5, 0.4, 0.05, random),
        model="steps/1-prune.keras" if final else "",
        final=final,
        seconds=21.4,
    )


def digits_report():
    """A classifier: six trials of pruning, one of them kept, then quantisation-aware training."""
    random = np.random.default_rng(0)
    base = 533 / 539
    spent = "accuracy falls by {:.2f} points, 0.50 are allowed"
    trials = [
        trial(0.5, 534 / 539, 98_304, "accepted", random=random),
        trial(0.75, 533 / 539, 57_651, "accepted", random=random),
        trial(0.875, 532 / 539, 31_022, "accepted", final=True, random=random),
        trial(0.96875, 411 / 539, 9_421, "rejected", random=random, reason=spent.format(22.63)),
        trial(0.9375, 524 / 539, 17_408, "rejected", random=random, reason=spent.format(1.67)),
        trial(0.90625, 529 / 539, 24_678, "rejected", random=random, reason=spent.format(0.74)),
    ]
    quantize = StepRecord(
        step="2-quantize",
        title="quantize by training",
        outcome="accepted",
        figures={"accuracy": 532 / 539},
        drops={"accuracy": 1 / 539},
        size_bytes=184_520,
        gzip_bytes=31_190,
        sparsity=0.871,
        parameters=45_290,
        stage=StageReport(
            stage="quantize",
            changed=tuple(name for name, _, _ in KERNELS),
            skipped=(
                Skipped("flatten", "moves values without computing"),
                Skipped("drop", "does nothing in inference"),
            ),
        ),
        epochs=epochs(4, 0.06, 0.03, random),
        model="steps/2-quantize.keras",
        final=True,
        seconds=33.0,
    )
    calibrated = dataclasses.replace(
        quantize,
        title="quantize by calibration",
        outcome="rejected",
        reason=spent.format(0.93),
        figures={"accuracy": 528 / 539},
        drops={"accuracy": 5 / 539},
        epochs={},
        final=False,
        model="",
        seconds=1.9,
    )
    softmax = {
        "index": 11,
        "name": "SOFTMAX",
        "layer": "classes",
        "reason": "kept float on request",
    }
    files = (
        FileRecord(
            path="model_float32.tflite",
            mode="float32",
            outcome="baseline",
            figures={"accuracy": base},
            drops={"accuracy": 0.0},
            size_bytes=184_520,
            gzip_bytes=168_960,
            sparsity=0.0,
            macs=1_204_480,
            operators=12,
            float_operators=tuple({**softmax, "index": i} for i in range(12)),
            agreement=1.0,
            sqnr_db=128.4,
            verdict="539 samples: the same class for 100.00 % of them, SQNR 128.4 dB.",
            sha256="9f" * 32,
            seconds=1.1,
        ),
        FileRecord(
            path="model_int8.tflite",
            mode="int8",
            way="quantization-aware training",
            outcome="accepted",
            figures={"accuracy": 532 / 539},
            drops={"accuracy": 1 / 539},
            size_bytes=53_416,
            gzip_bytes=13_926,
            sparsity=0.88,
            macs=1_204_480,
            operators=12,
            agreement=0.9963,
            sqnr_db=31.2,
            verdict="539 samples: the same class for 99.63 % of them, SQNR 31.2 dB.",
            sha256="4c" * 32,
            seconds=4.2,
        ),
        FileRecord(
            path="model_int16x8.tflite",
            mode="int16x8",
            way="calibration",
            outcome="rejected",
            reason="latency_ms 0.211 is above 0.1",
            figures={"accuracy": 533 / 539},
            drops={"accuracy": 0.0},
            size_bytes=55_008,
            gzip_bytes=15_104,
            sparsity=0.88,
            macs=1_204_480,
            operators=12,
            float_operators=(softmax,),
            agreement=0.9981,
            sqnr_db=52.7,
            verdict="539 samples: the same class for 99.81 % of them, SQNR 52.7 dB.",
            sha256="a1" * 32,
            seconds=3.8,
        ),
    )
    baseline = StepRecord(
        step="baseline",
        title="the model as it came",
        outcome="baseline",
        figures={"accuracy": base},
        drops={"accuracy": 0.0},
        size_bytes=184_520,
        gzip_bytes=168_960,
        sparsity=0.0,
        parameters=45_290,
        final=True,
        seconds=2.0,
    )
    return RunReport(
        name="digits",
        fits=True,
        best="model_int8.tflite",
        verdicts=(
            "model_int8.tflite keeps every limit.",
            "Pruning reached 87.5 % zeros; the next try, 90.6 %, spent 0.74 points.",
            "Calibration alone spent 0.93 points; quantization-aware training spent 0.19.",
        ),
        metrics=({"name": "accuracy", "higher_is_better": True, "unit": "points"},),
        budget={"accuracy": base - 0.005},
        limits={"gzip_bytes": 50_000, "latency_ms": 0.1},
        steps=(baseline, *trials, calibrated, quantize),
        files=files,
        latency=(
            measured("model_float32.tflite", 0.0412, 184_520, 12),
            measured("model_int8.tflite", 0.0241, 53_416, 12),
            measured("model_int16x8.tflite", 0.2112, 55_008, 12),
            measured("model_float32.tflite", 0.0981, 184_520, 12, "none"),
            measured("model_int8.tflite", 0.0633, 53_416, 12, "none"),
        ),
        latency_verdicts=(
            "model_int8 is 1.7× faster than model_float32 on this host (xnnpack, 1 thread)",
            "model_int8 is 1.5× faster than model_float32 on this host (none, 1 thread)",
        ),
        layers=tuple(
            layer(name, kind, shape, 0.0 if kind == "DepthwiseConv2D" else 0.88, random)
            for name, kind, shape in KERNELS
        ),
        data={
            "name": "digits",
            "train_samples": 1078,
            "evaluation_samples": 539,
            "calibration_samples": 180,
            "notes": ["The evaluation samples were never trained on."],
            "sha256": "77" * 32,
        },
        recipe={
            "name": "digits",
            "model": "model.keras",
            "data": "digits",
            "metric": "accuracy",
            "max_drop": 0.5,
            "limits": {"gzip_bytes": 50_000, "latency_ms": 0.1},
            "stages": [{"prune": {"sparsity": "auto"}}, {"quantize": "auto"}],
            "convert": ["float32", "int8", "int16x8"],
            "seed": 0,
        },
        hashes={"recipe": "1e" * 32, "model": "b2" * 32},
        versions=VERSIONS,
        host=HOST,
        inputs=({"label": "image", "dtype": "int8", "shape": [1, 8, 8, 1]},),
        accelerators=(
            {
                "target": "edgetpu",
                "path": "model_int8.tflite",
                "preflight": {
                    "operators": [
                        {"index": 0, "name": "CONV_2D", "mapped": True, "reason": None},
                        {"index": 1, "name": "TILE", "mapped": None, "reason": "Not known"},
                        {"index": 2, "name": "GELU", "mapped": False, "reason": "Not supported"},
                    ]
                },
                "compiled": None,
                "compilation": None,
                "why_not": "The compiler is needed. Get it: from Google.",
            },
        ),
        notes=("The host was busy (load 1.4 on 2 cores): trust ratios, not milliseconds.",),
        started="2026-05-04T10:22:41Z",
        seconds=214.6,
    )


def step(title, figures, drops, gzip, outcome="accepted", **more):
    return StepRecord(
        step=more.pop("step", "1-prune"),
        title=title,
        outcome=outcome,
        figures=figures,
        drops=drops,
        size_bytes=20_964,
        gzip_bytes=gzip,
        sparsity=more.pop("sparsity", 0.5),
        seconds=3.0,
        **more,
    )


def file(path, mode, figures, drops, size, gzip, outcome="accepted", **more):
    return FileRecord(
        path=path,
        mode=mode,
        outcome=outcome,
        figures=figures,
        drops=drops,
        size_bytes=size,
        gzip_bytes=gzip,
        sparsity=0.0 if outcome == "baseline" else 0.5,
        macs=4_900,
        operators=4,
        **more,
    )


def regression_report():
    """A regression in which nothing fits: the figure is an error, lower is better."""
    reason = "mae rises by 0.2114, 0.1000 are allowed"
    return RunReport(
        name="house prices",
        fits=False,
        best=None,
        spent_by="1-prune",
        verdicts=("No file stays within max_drop.",),
        metrics=({"name": "mae", "higher_is_better": False, "unit": ""},),
        budget={"mae": 2.5128},
        limits={},
        steps=(
            step("the model as it came", {"mae": 2.4128}, {}, 18_840, "baseline", step="baseline"),
            step("prune to 50 % zeros", {"mae": 2.6242}, {"mae": 0.2114}, 11_790, "rejected",
                 reason=reason, strength={"sparsity": 0.5}, epochs={"loss": (0.31,)}),
            step("prune to 25 % zeros", {"mae": 2.5551}, {"mae": 0.1423}, 15_210, "rejected",
                 reason="mae rises by 0.1423, 0.1000 are allowed", strength={"sparsity": 0.25}),
        ),
        files=(
            file("model_float32.tflite", "float32", {"mae": 2.4128}, {"mae": 0.0}, 20_964, 18_840,
                 "baseline", sqnr_db=None),
            file("model_int8.tflite", "int8", {"mae": 2.6401}, {"mae": 0.2273}, 8_120, 5_931,
                 "rejected", reason="mae rises by 0.2273, 0.1000 are allowed",
                 way="calibration", sqnr_db=28.1),
        ),
        latency=(),
        latency_verdicts=(),
        layers=(),
        data={"name": "housing.npz", "evaluation_samples": 404},
        recipe={"model": "model.h5", "metric": "mae", "max_drop": 0.1},
        hashes={},
        versions={},
        host={},
    )  # fmt: skip


def two_outputs_report():
    """A model with a class and a number as outputs, each with its own figure of merit."""
    names = ("kind_accuracy", "weight_rmse")
    before, after = (
        dict(zip(names, (0.9412, 3.205), strict=True)),
        dict(zip(names, (0.9433, 3.391), strict=True)),
    )
    drops = {"kind_accuracy": -0.0021, "weight_rmse": 0.186}
    return RunReport(
        name="two_outputs",
        fits=True,
        best="model_int8.tflite",
        verdicts=("model_int8.tflite keeps every limit.",),
        metrics=(
            {"name": "kind_accuracy", "higher_is_better": True, "unit": "points"},
            {"name": "weight_rmse", "higher_is_better": False, "unit": ""},
        ),
        budget={"kind_accuracy": 0.9312, "weight_rmse": 3.4},
        limits={"size_bytes": 100_000},
        steps=(
            step("the model as it came", before, {}, 2_310_144, "baseline", step="baseline"),
            step("prune to 50 % zeros", after, drops, 1_502_720, final=True,
                 strength={"sparsity": 0.5}),
        ),
        files=(
            file("model_float32.tflite", "float32", before, {}, 2_600_960, 2_310_144, "baseline"),
            file("model_int8.tflite", "int8", after, drops, 690_176, 402_944,
                 way="quantization-aware training", agreement=0.9921, sqnr_db=30.4),
        ),
        latency=(),
        latency_verdicts=(),
        layers=(),
        data={},
        recipe={},
        hashes={},
        versions={},
        host={},
        inputs=(
            {"label": "image", "dtype": "int8", "shape": [1, 32, 32, 3]},
            {"label": "size", "dtype": "int8", "shape": [1, 2]},
        ),
    )  # fmt: skip


REPORTS = {
    "digits": digits_report,
    "regression": regression_report,
    "two outputs": two_outputs_report,
}


@pytest.fixture(scope="module")
def pages():
    """The page of each report."""
    return {name: render(make()) for name, make in REPORTS.items()}


def parse(html):
    """The page's tree; raises at the first thing that is not HTML5."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(html)


def text_of(element):
    """What a reader sees of an element, in one line."""
    skipped = ("style", "title") if element.tag == "html" else ()
    parts = [element.text or ""] if element.tag not in skipped else []
    for child in element:
        if isinstance(child.tag, str) and child.tag.split("}")[-1] != "style":
            parts += [text_of(child)]
        parts.append(child.tail or "")
    return " ".join("".join(parts).split())


def headings(html):
    return [text_of(heading) for heading in parse(html).iter("h2")]


def rows_by_head(html, section):
    (found,) = (s for s in parse(html).iter("section") if s.get("id") == section)
    rows = ([text_of(cell) for cell in row] for row in next(found.iter("table")).iter("tr"))
    return {cells[0]: cells[1:] for cells in rows}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_strict_html_with_one_h1_and_a_language(pages, name):
    tree = parse(pages[name])
    assert tree.get("lang") == "en"
    assert len(list(tree.iter("h1"))) == 1


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_loads_nothing_and_runs_nothing(pages, name):
    html = pages[name]
    assert not re.search(r"https?:|//|@import|\ssrc=|javascript:|<script|<link|<img", html)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert all(value.startswith("#") for value in re.findall(r"href=\"([^\"]*)", html))
    assert "default-src 'none'" in html


@pytest.mark.parametrize("name", REPORTS)
def test_ids_are_unique_and_what_refers_to_one_finds_it(pages, name):
    html = pages[name]
    ids = re.findall(r"\sid=\"([^\"]*)", html)
    assert len(ids) == len(set(ids))
    used = re.findall(r"href=\"#([^\"]*)|url\(#([^)]*)|aria-labelledby=\"([^\"]*)", html)
    assert {next(filter(None, groups)) for groups in used} <= set(ids)


@pytest.mark.parametrize("name", REPORTS)
def test_every_drawing_has_a_title_and_only_colours_of_the_page(pages, name):
    for drawing in re.findall(r"<svg.*?</svg>", pages[name], flags=re.DOTALL):
        assert re.match(r"<svg [^>]*role=\"img\"[^>]*><title id=\"[^\"]+\">[^<]+</title>", drawing)
        assert not re.search(r"#[0-9a-f]{6}|font-family|xmlns|<style|<metadata", drawing)


def test_every_table_has_a_caption_and_heads_with_a_scope(pages):
    for table in parse(pages["digits"]).iter("table"):
        assert text_of(next(table.iter("caption")))
        assert all(head.get("scope") for head in table.iter("th"))


def test_the_same_report_gives_the_same_bytes_in_another_process_and_style(pages):
    given = json.dumps(digits_report().to_dict())
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "lines.linewidth": 9}):
        assert render(json.loads(given)) == pages["digits"]
    code = (
        "import json, sys; from tfedge.page import render\n"
        "sys.stdout.buffer.write(render(json.load(sys.stdin)).encode())"
    )
    assert fresh(code, given) == pages["digits"]


def fresh(code, given=""):
    """What a fresh Python process prints."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=given.encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "7"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_importing_the_page_draws_nothing_in_and_a_missing_package_is_named():
    code = (
        "import sys; import tfedge.page\n"
        "assert not {'jinja2', 'matplotlib', 'yaml', 'tensorflow'} & set(sys.modules)\n"
        "sys.modules['matplotlib'] = None\n"
        "import json; report = json.load(sys.stdin)\n"
        "try:\n    tfedge.page.render(report)\n"
        "except tfedge.MissingExtraError as error:\n    print(error)\n"
    )
    said = fresh(code, json.dumps(regression_report().to_dict()))
    assert "matplotlib" in said and 'pip install "tfedge[train]"' in said


def test_the_headline_says_verdict_file_sizes_and_metric(pages):
    header = text_of(next(parse(pages["digits"]).iter("header")))
    for words in (
        "Fits",
        "12.1× smaller, accuracy 98.70 % (−0.19 points)",
        "model_int8.tflite is 13.6 KiB after gzip -9 (was 165.0 KiB, 12.1× smaller)",
        "52.2 KiB raw (was 180.2 KiB, 3.5× smaller)",
        "accuracy is 98.70 % (was 98.89 %, −0.19 points)",
        "allowed: at least 98.39 %",
        "allowed: at most 48.8 KiB",
        "was 0.041 ms (−42 %)",
        "ai-edge-litert 2.3.0, xnnpack, 1 thread",
        *digits_report().verdicts,
    ):
        assert words in header


def test_the_headline_of_a_run_that_does_not_fit_names_the_step_and_the_reasons(pages):
    header = text_of(next(parse(pages["regression"]).iter("header")))
    assert "✕ Does not fit No file stays within the budget" in header
    assert "The step 1-prune spent the budget." in header
    assert "model_int8.tflite was rejected: mae rises by 0.2273, 0.1000 are allowed." in header


def test_a_best_file_that_breaks_a_limit_is_not_said_to_fit():
    report = digits_report()
    int8 = dataclasses.replace(report.files[1], reason="gzip_bytes 13926 is above 10000")
    files = (report.files[0], int8)
    header = render(dataclasses.replace(report, fits=False, files=files))
    assert "Does not fit" in header
    assert "Yet it does not fit: gzip_bytes 13926 is above 10000." in header.replace("\xa0", " ")


@pytest.mark.parametrize("name", REPORTS)
def test_figures_of_steps_and_files_are_those_of_the_report(pages, name):
    report = REPORTS[name]()
    steps, files = rows_by_head(pages[name], "steps"), rows_by_head(pages[name], "files")
    for rows, record, head in (
        *((steps, row, row.title) for row in report.steps),
        *((steps, row, row.path) for row in report.files if row.outcome != "baseline"),
        *((files, row, row.path) for row in report.files),
    ):
        (cells,) = (cells for key, cells in rows.items() if key.startswith(head))
        assert format_bytes(record.gzip_bytes) in " ".join(cells)
        assert format_bytes(record.size_bytes) in " ".join(cells)
        for metric in report.metrics:
            value = record.figures[metric["name"]]
            shown = f"{100 * value:.2f} %" if metric["unit"] == "points" else f"{value:.3f}"
            assert any(cell.startswith(shown) for cell in cells), (head, shown, cells)


def test_a_rejected_trial_is_there_with_its_reason_and_marked_in_words(pages):
    rows = rows_by_head(pages["digits"], "steps")
    for row in digits_report().steps:
        (head,) = (key for key in rows if key.startswith(row.title))
        if row.outcome == "rejected":
            assert head == f"{row.title} ✕rejected: {row.reason}"
        elif row.outcome == "accepted":
            assert head.endswith("✓kept" if row.final else "○within the budget, not used")


def test_changes_carry_the_sign_of_the_figure_and_not_of_the_drop(pages):
    digits = rows_by_head(pages["digits"], "steps")
    assert next(c for k, c in digits.items() if k.startswith("prune to 50"))[0] == "99.07 % (+0.19)"
    mae = rows_by_head(pages["regression"], "steps")
    head = next(key for key in mae if key.startswith("prune to 50"))
    assert mae[head][0] == "2.624 (+0.211)"
    assert "lower is better" in mae["model"][0]


def test_each_figure_of_merit_has_a_column_and_a_chart(pages):
    tree = parse(pages["two outputs"])
    (section,) = (s for s in tree.iter("section") if s.get("id") == "tradeoff")
    captions = [text_of(caption) for caption in section.iter("figcaption")]
    assert [caption.split()[0] for caption in captions] == ["kind_accuracy", "weight_rmse"]
    assert "lower is better" in captions[1]
    assert len(re.findall("<svg", pages["two outputs"])) == 4  # each for a desk and for a phone


def test_the_chart_holds_every_file_trial_and_the_budget(pages):
    (title,) = re.findall(r"<title id=\"tradeoff-0-title\">([^<]*)", pages["digits"])
    for words in ("int8: 13.6 KiB, 98.70 %", "75 % zeros: 56.3 KiB", "int16x8: 14.8 KiB",
                  "96.9 % zeros: 9.2 KiB, 76.25 %", "at least 98.39 %"):  # fmt: skip
        assert words in title


def test_operators_left_in_float_are_listed_for_integer_files_only(pages):
    (section,) = (s for s in parse(pages["digits"]).iter("section") if s.get("id") == "files")
    assert len(list(section.iter("table"))) == 2
    rows = [[text_of(cell) for cell in row] for row in list(section.iter("table"))[1].iter("tr")]
    assert rows[1:] == [["classes", "SOFTMAX", "11", "kept float on request"]]


def test_skipped_layers_stand_under_their_reason(pages):
    (section,) = (s for s in parse(pages["digits"]).iter("section") if s.get("id") == "skipped")
    pairs = [(next(row.iter("dt")), next(row.iter("dd"))) for row in section.iter("div")]
    rows = {text_of(reason): text_of(layers) for reason, layers in pairs}
    assert rows["no kernel that can be pruned 7 layers"].startswith("norm_1 norm_2 norm_3 norm_4")
    assert rows["does nothing in inference 1 layer"] == "drop"


def test_accelerators_are_shown_with_what_runs_there_and_why_there_is_no_file(pages):
    sections = parse(pages["digits"]).iter("section")
    (section,) = (s for s in sections if s.get("id") == "accelerators")
    (row,) = list(next(section.iter("tbody")).iter("tr"))
    shown = ["edgetpu", "1 of 3", "1", "GELU", "noneThe compiler is needed."]
    assert [text_of(cell) for cell in row] == shown


def test_what_is_empty_vanishes_with_its_heading(pages):
    assert headings(pages["digits"]) == [
        "From the baseline to the files",
        "Size against quality",
        "Files",
        "Latency",
        "Accelerators",
        "Zeros in each layer",
        "Training, epoch by epoch",
        "What was skipped, and why",
        "Notes",
        "Run the file",
        "Record",
    ]
    kept = ["From the baseline to the files", "Size against quality", "Files"]
    assert headings(pages["two outputs"]) == [*kept, "Run the file"]
    empty = {field.name: () for field in dataclasses.fields(RunReport)}
    nothing = RunReport(
        **{**empty, "name": "", "fits": True, "best": None, "spent_by": "", "started": "",
           "seconds": 0.0, **dict.fromkeys(("budget", "limits", "data", "recipe", "hashes",
                                            "versions", "host"), {})}
    )  # fmt: skip
    html = render(nothing)
    assert headings(html) == []
    assert not re.search(r"<table|<svg|<ul>\s*</ul>|<dl", html)


NASTY = (
    "<script>alert(1)</script>",
    "]]>&amp;<!--",
    "\"><img onerror=alert(1)>' ${x} {{ 7*7 }} $\\\\frac{1}{2}$",
    "Größe 日本語 עברית 🐙",
    "x" * 3000,
    "\x00\x1b\ud800\u202e\ufffe",
)


def infect(value, text):
    """The report with `text` behind every name and sentence that came from outside."""
    if isinstance(value, dict):
        return {key: item if key in ("outcome", "dtype", "unit") else infect(item, text)
                for key, item in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [infect(item, text) for item in value]
    return value + text if isinstance(value, str) else value


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_texts_of_the_report_stay_texts(text):
    values = infect(digits_report().to_dict(), text)
    values["metrics"][0]["name"] = "accuracy"
    values["recipe"][text] = [text]
    html = render(values)
    tree = parse(html)
    assert not {"script", "img"} & {element.tag for element in tree.iter() if element.tag}
    attributes = {str(name) for element in tree.iter() for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on")]
    html.encode()
    shown = read_report(values).layers[0].layer
    names = [element.text for element in tree.iter("code")]
    assert shown in names
    assert "49" not in "".join(name or "" for name in names if "7*7" in (name or ""))


def test_layers_come_by_size_and_the_rest_is_counted():
    random = np.random.default_rng(0)
    layers = [layer(f"dense_{n}", "Dense", (n, 10), 0.5, random) for n in range(1, 31)]
    html = render(dataclasses.replace(digits_report(), layers=tuple(layers)))
    rows = list(rows_by_head(html, "layers"))
    assert rows[1:] == [f"dense_{n}" for n in range(30, 6, -1)]
    assert "6 smaller kernels with 210 weights are not shown" in html


def test_numbers_that_json_has_no_word_for_are_dashes():
    report = regression_report()
    broken = dataclasses.replace(
        report.files[1], figures={"mae": math.nan}, drops={"mae": math.inf}
    )
    given = dataclasses.replace(report, files=(report.files[0], broken))
    assert render(given) == render(json.loads(json.dumps(given.to_dict(), allow_nan=False)))
    row = next(c for k, c in rows_by_head(render(given), "files").items() if "int8" in k)
    assert row[1] == "–"


def change(**parts):
    return {**regression_report().to_dict(), **parts}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "a mapping"),
        ({"name": "run"}, "`fits`"),
        (change(steps="abc"), "`steps` of a report is a list"),
        (change(steps=[{"step": "baseline"}]), r"`steps\[0\].title`"),
        (change(fits="yes"), "true or false"),
        (change(budget={"mae": "low"}), r"`budget.mae` of a report is a number"),
        (change(verdicts=[3]), "is a text"),
    ],
)
def test_a_report_of_another_shape_is_refused(given, match):
    with pytest.raises(DataError, match=match):
        render(given)
    render(change())


def snippets(html):
    (section,) = (s for s in parse(html).iter("section") if s.get("id") == "run")
    return ["".join(code.itertext()) for code in section.iter("code")]


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_code_on_the_page_runs_the_file(
    dtype, float_file, int8_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("model's.tflite").write_bytes(int8_file if dtype == "int8" else float_file)
    report = digits_report()
    best = dataclasses.replace(report.files[1], path="model's.tflite")
    given = dataclasses.replace(
        report,
        files=(report.files[0], best),
        best=best.path,
        inputs=({"label": "image", "dtype": dtype, "shape": [1, 8, 8, 3]},),
    )
    printed = []
    zeros = "np.zeros((1, 8, 8, 3), np.float32)"
    for source in snippets(render(given)):
        assert zeros in source
        source = source.replace(zeros, "np.random.default_rng(0).random((1, 8, 8, 3), 'float32')")
        exec(compile(source, "page", "exec"), {})
        printed.append(np.fromstring(re.sub(r"[\[\]]", " ", capsys.readouterr().out), sep=" "))
    assert len(printed) == 2
    assert printed[0].shape == (10,)
    np.testing.assert_allclose(printed[0], printed[1], atol=1e-6)
    assert 0.95 < printed[0].sum() < 1.05
    assert printed[0].std() > 0.01
