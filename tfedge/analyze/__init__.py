"""Say where parameters, multiply-accumulates, memory and time of a model go, and what would help.

    analysis = analyze(model, data)
    print(analysis)                      # layers, the slowest first, and suggestions
    write_whole("layers.svg", draw(analysis))
    analysis.recipe("model.keras", "digits")

Latency is measured: the model is converted to a float32 `.tflite` file, each operator of that file
is run alone, and the time goes to the layer that the operator came from (see `timing`). Importing
this loads neither TensorFlow nor Keras.
"""

from collections.abc import Callable
from typing import Any

from tfedge.analyze.chart import draw
from tfedge.analyze.records import Analysis, LayerCost, Suggestion

__all__ = ["Analysis", "LayerCost", "Suggestion", "analyze", "draw"]


def analyze(
    model: Any,
    data: Any = None,
    *,
    measure: bool = True,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Analysis:
    """Find out where the costs of a model lie and what would help.

    Args:
        model: A functional or Sequential model of either Keras, which stays as it is. One of
            tf_keras is looked at as `to_keras3` rebuilds it.
        data: Training or calibration samples, to find channels that are always the same. Default:
            channels are judged by their weights alone.
        measure: Whether to convert the model to float32 and time its operators on this machine.
        threads: Threads to time with.
        progress: Called with a sentence when a step begins.

    Returns:
        A row for each layer, bottlenecks first, suggestions and notes.

    Raises:
        UnsupportedModelError: The model has no graph of layers, or an input of open size.
        ModelError: Weights are not finite, or Keras 3 cannot rebuild a tf_keras model.
        SettingsError: `threads` is not a whole number from 1.
        DataError: The data do not fit the model.

    Example:
        >>> analysis = analyze(model, data)  # doctest: +SKIP
        >>> analysis.layers[0].layer         # doctest: +SKIP
        'conv2d_3'
    """
    from tfedge.analyze.looking import look  # imports Keras

    return look(model, data, measure=measure, threads=threads, progress=progress)
