"""Calibrate MLPerf Tiny's ResNet-8 to int8 and judge it on all 10,000 CIFAR-10 test images.

    TFEDGE_DATA_DIR=… python benchmarks/resnet8_calibration.py MODELS_FOLDER

`MODELS_FOLDER` holds `mlperf_tiny_resnet8.h5` and `mlperf_tiny_resnet8_reference_int8.tflite`.
Calibration samples come from the training images. Exit code 1 if a claim fails.
"""

import sys
from pathlib import Path

import numpy as np

import tfedge
from tfedge.data import agreement, find_metric, load_dataset
from tfedge.runtime import open_model


def main(folder: Path) -> int:
    data = load_dataset("cifar10")
    x, y = data.evaluation.x, data.evaluation.y
    model = tfedge.load_model(folder / "mlperf_tiny_resnet8.h5")
    reference = (folder / "mlperf_tiny_resnet8_reference_int8.tflite").read_bytes()
    ours, report = tfedge.convert(model, mode="int8", calibration=data.train.take(500))
    float_scores = model.predict(x, batch_size=500, verbose=0)
    scores = {}
    for name, file in {"tfedge": ours, "MLPerf reference": reference}.items():
        with open_model(file) as runner:
            scores[name] = runner.predict(x)
    permuted = scores["tfedge"][np.random.default_rng(0).permutation(len(x))]
    accuracy = find_metric("accuracy").function
    figures = {
        "float": accuracy(y, float_scores),
        "int8": accuracy(y, scores["tfedge"]),
        "reference": accuracy(y, scores["MLPerf reference"]),
        "agreement": agreement(float_scores, scores["tfedge"]),
        "control": agreement(float_scores, permuted),
    }
    print(
        f"accuracy on {len(x)} images: float {figures['float']:.4f}, tfedge int8 "
        f"{figures['int8']:.4f}, MLPerf's int8 {figures['reference']:.4f}"
    )
    print(
        f"argmax agreement with float {figures['agreement']:.4f}, permuted control "
        f"{figures['control']:.4f}"
    )
    print(
        f"size: tfedge {len(ours)} bytes, MLPerf's {len(reference)} bytes; float operators: "
        f"{len(report.float_operators)}; conversion {report.seconds:.1f} s"
    )
    claims = {
        "accuracy >= float - 0.5 point": figures["int8"] >= figures["float"] - 0.005,
        "agreement >= 96 %": figures["agreement"] >= 0.96,
        "control < 20 %": figures["control"] < 0.2,
        "no larger than the reference": len(ours) <= len(reference),
        "no float operator": not report.float_operators,
    }
    for claim, holds in claims.items():
        print(f"{'ok  ' if holds else 'FAIL'} {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
