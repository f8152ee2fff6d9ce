"""Convert a Keras model file to an int8 `.tflite` file, with the public API of tfedge.

python scripts/convert_tflite.py model.keras calibration.npz model_int8.tflite
"""

import argparse
import sys
from pathlib import Path

import tfedge
from tfedge.files import write_whole


def main() -> int:
    """Convert, say how far the file is from the model, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a .keras or .h5 file")
    parser.add_argument("calibration", help="an .npz, an .npy, a folder of images or a name")
    parser.add_argument("output", type=Path, help="the .tflite file to write")
    arguments = parser.parse_args()
    try:
        model = tfedge.load_model(arguments.model)
        samples = tfedge.load_calibration(arguments.calibration, model=model)
        content, report = tfedge.convert(model, mode="int8", calibration=samples)
        write_whole(arguments.output, content)
    except tfedge.TfedgeError as error:
        print(f"convert_tflite: error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    print(report.verification)
    return 0


if __name__ == "__main__":
    sys.exit(main())
