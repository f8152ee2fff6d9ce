#!/usr/bin/env python3
"""A FAKE of Google's `edgetpu_compiler`: it compiles nothing.

It takes the options that Coral's page documents, prints logs of the format of version 16.0 (see the
sources in `tfedge/accelerators/edgetpu/log.py`), and writes files that were given to it. Tests tell
it what to do by environment variables:

    FAKE_EDGETPU_SCENARIO   what happens: one of SCENARIOS; default "success"
    FAKE_EDGETPU_COMPILED   files that it hands out as compiled ones, in order, split by ":"
    FAKE_EDGETPU_TABLE      the operator table: JSON rows [kind, count, status]
    FAKE_EDGETPU_SEEN       file that it writes its arguments to, as JSON
    FAKE_EDGETPU_VERSION    its version; default 16.0.384591198

What it makes lies in the folder asked for, under the names that the compiler would use; the
description in its logs says FAKE.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

VERSION = os.environ.get("FAKE_EDGETPU_VERSION", "16.0.384591198")
TIMER = "Started a compilation timeout timer of {} seconds."
ENDED = "Compilation child process completed within timeout period."
FAILED = "Compilation failed! "
SCENARIOS = {
    "not_quantized": "Invalid model: {model}\nModel not quantized",
    "version": (
        "ERROR: Didn't find op for builtin opcode '{kind}' version '{number}'. An older version of "
        "this builtin might be supported. Are you using an old TFLite binary with a newer model?\n"
        "\nERROR: Registration failed.\n\nInvalid model: {model}\nModel could not be parsed"
    ),
    "new_operator": (
        "ERROR: Op builtin_code out of range: {number}. Are you using old TFLite binary with newer "
        "model?\nInvalid model: {model}\nModel could not be parsed"
    ),
    "internal": "\nInternal compiler error. Aborting! ",
    "dynamic": (
        f"{TIMER}\nERROR: Attempting to use a delegate that only supports static-sized tensors "
        "with a graph that has dynamic-sized tensors.\nCompilation failed: Model failed in Tflite "
        "interpreter. Please ensure model can be loaded/run in Tflite interpreter.\n"
        f"{ENDED}\n{FAILED}"
    ),
    "large": (
        f"{TIMER}\nERROR: Restored original execution plan after delegate application failure.\n"
        "Compilation failed: Compilation failed due to large activation tensors in model.\n"
        f"{ENDED}\n{FAILED}"
    ),
    "timeout": (
        f"{TIMER}\nCompilation timeout. This is usually caused by large activations.\n{FAILED}"
    ),
    "silent": f"{TIMER}\n{ENDED}\n{FAILED}",
    "subgraphs": f"{TIMER}\nCompilation failed: Multiple subgraphs are not supported.\n{FAILED}",
    "interpreter": (
        f"{TIMER}\nCompilation failed: Model failed in Tflite interpreter. Please ensure model can "
        f"be loaded/run in Tflite interpreter.\n{ENDED}\n{FAILED}"
    ),
}
DONE = ("success", "crash", "hang", "nothing", "half", "unsound", "log_only")
FIGURES = """
Input model: {input}
Input size: {size:.2f}KiB
Output model: {output}
Output size: {size:.2f}KiB
On-chip memory used for caching model parameters: 604.50KiB
On-chip memory remaining for caching model parameters: 6.89MiB
Off-chip memory used for streaming uncached model parameters: {off_chip}
Number of Edge TPU subgraphs: 1
Total number of operations: {total}
Operation log: {log}
"""


def main() -> int:
    options = arguments()
    if seen := os.environ.get("FAKE_EDGETPU_SEEN"):
        Path(seen).write_text(json.dumps({"arguments": sys.argv[1:], "options": vars(options)}))
    print(f"Edge TPU Compiler version {VERSION}")
    if options.version:
        return 0
    scenario = os.environ.get("FAKE_EDGETPU_SCENARIO", "success")
    name, _, rest = scenario.partition(":")
    if name in SCENARIOS:
        kind, _, number = rest.partition(":")
        text = SCENARIOS[name].format(
            options.timeout_sec, model=options.models[-1], kind=kind, number=number
        )
        print(text)
        return 1
    if name not in DONE:
        raise SystemExit(f"The fake has no scenario {scenario!r}.")
    if name == "nothing":
        return 0
    if name == "crash":
        sys.stdout.flush()
        os.abort()
    if name == "hang":
        sys.stdout.flush()
        time.sleep(600)
    return success(options, name)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A FAKE edgetpu_compiler.", allow_abbrev=False)
    parser.add_argument("-i", "--intermediate_tensors")
    parser.add_argument("-m", "--min_runtime_version", type=int)
    parser.add_argument("-n", "--num_segments", type=int, default=1)
    parser.add_argument("-o", "--out_dir", default=".")
    parser.add_argument("-s", "--show_operations", action="store_true")
    parser.add_argument("-d", "--search_delegate", action="store_true")
    parser.add_argument("-k", "--delegate_search_step", type=int)
    parser.add_argument("-a", "--enable_multiple_subgraphs", action="store_true")
    if int(VERSION.partition(".")[0]) >= 16:
        parser.add_argument("-t", "--timeout_sec", type=int, default=180)
    parser.add_argument("-v", "--version", action="store_true")
    parser.add_argument("models", nargs="*")
    return parser.parse_args()


def success(options: argparse.Namespace, scenario: str) -> int:
    print(TIMER.format(getattr(options, "timeout_sec", 180)))
    stems = [Path(model).stem for model in options.models]
    if options.num_segments > 1:
        count = options.num_segments
        stems = [f"{stems[0]}_segment_{i}_of_{count}" for i in range(count)]
    compiled = os.environ["FAKE_EDGETPU_COMPILED"].split(":")
    print(f"\nModel{'s' if len(stems) > 1 else ''} compiled successfully in 395 ms.")
    for number, (stem, source) in enumerate(zip(stems, compiled, strict=True)):
        if scenario == "half" and number == len(stems) - 1:
            print(f"{ENDED}\n{FAILED}")
            return 1
        output = Path(options.out_dir) / f"{stem}_edgetpu.tflite"
        if scenario == "unsound":
            output.write_bytes(b"not a FlatBuffer, by the FAKE compiler")
        else:
            shutil.copyfile(source, output)
        report(options, f"{stem}.tflite", output, scenario)
    print(f"{ENDED}\nCompilation succeeded! ")
    return 0


def report(options: argparse.Namespace, stem: str, output: Path, scenario: str) -> None:
    rows = json.loads(os.environ.get("FAKE_EDGETPU_TABLE", "[]"))
    table = "".join(f"{kind:<30} {count:<10} {status}\n" for kind, count, status in rows)
    table = f"\nOperator                       Count      Status\n\n{table}"
    log = output.with_suffix(".log")
    log.write_text(f"Edge TPU Compiler version {VERSION}\nInput: {stem}\nOutput: {output}\n{table}")
    cpu = sum(count for _, count, status in rows if status != "Mapped to Edge TPU")
    total = sum(count for _, count, _ in rows)
    off_chip = "3.45MiB" if scenario == "log_only" else "0.00B"
    size = output.stat().st_size / 1024
    print(
        FIGURES.format(
            input=stem, output=output, size=size, total=total, log=log, off_chip=off_chip
        )
    )
    if cpu:
        print(
            "Model successfully compiled but not all operations are supported by the Edge TPU. A "
            "percentage of the model will instead run on the CPU, which is slower. If possible, "
            "consider updating your model to use only operations supported by the Edge TPU. For "
            "details, visit g.co/coral/model-reqs.\nNumber of operations that will run on Edge "
            f"TPU: {total - cpu}\nNumber of operations that will run on CPU: {cpu}"
        )
    show = options.show_operations and scenario != "log_only"
    print(table if show else "See the operation log file for individual operation details.")


if __name__ == "__main__":
    sys.exit(main())
