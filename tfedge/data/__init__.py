"""Load training, evaluation and calibration data; check them; judge predictions by any metric.

The way through::

    data = load_dataset("digits")                    # or a file, a folder, `module:function`
    check_data(model, data.train)                    # one clear line where they do not fit
    model.fit(**data.train.fit_arguments(batch_size=32))
    evaluate(lambda x: model.predict(x, verbose=0), data.evaluation, "accuracy")
    convert(model, mode="int8", calibration=data.calibration.x)

Importing this loads neither TensorFlow nor Keras; accuracy, error and overlap figures are NumPy.
"""

from tfedge.data.checks import check_calibration, check_data
from tfedge.data.contract import InputContract
from tfedge.data.evaluation import evaluate
from tfedge.data.figures import agreement, sqnr_db
from tfedge.data.functions import find_function
from tfedge.data.loading import as_data, load_calibration, load_dataset, load_evaluation
from tfedge.data.metrics import Metric, find_metric
from tfedge.data.splits import Data, Split

__all__ = [
    "Data",
    "InputContract",
    "Metric",
    "Split",
    "agreement",
    "as_data",
    "check_calibration",
    "check_data",
    "evaluate",
    "find_function",
    "find_metric",
    "load_calibration",
    "load_dataset",
    "load_evaluation",
    "sqnr_db",
]
