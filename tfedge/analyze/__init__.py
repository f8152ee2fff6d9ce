"""Say where parameters, multiply-accumulates, memory and time of a model go, and what would help.

    analysis = analyze(model, data)
    print(analysis)                      # layers, the slowest first, and suggestions
    write_whole("layers.svg", draw(analysis))
    analysis.recipe("model.keras", "digits")

Latency is measured: the model is converted to a float32 `.tflite` file, each operator of that file
is run alone, and the time goes to the layer that the operator came from (see `timing`).
"""

from tfedge.analyze.chart import draw as draw
from tfedge.analyze.looking import analyze as analyze
from tfedge.analyze.records import Analysis as Analysis
from tfedge.analyze.records import LayerCost as LayerCost
from tfedge.analyze.records import Suggestion as Suggestion

__all__ = ["Analysis", "LayerCost", "Suggestion", "analyze", "draw"]
