"""Find the channels of a graph that can only be removed together, and what reads and writes them.

Every channel that a layer writes gets a label. Labels are followed through the graph: a residual
sum joins those that it adds, a concatenation lays them side by side, `Flatten` repeats each of them
for every place. What bears one label goes or stays together (Fang et al. 2023, "DepGraph: Towards
Any Structural Pruning", arXiv:2301.12900, has the same aim). A call without a rule pins the labels
that it reads and writes, and says why.
"""

from tfedge.engines.native.channel_moves import Untraceable
from tfedge.engines.native.channel_rules import trace_call
from tfedge.engines.native.channel_tracer import Channels as Channels
from tfedge.engines.native.channel_tracer import Group as Group
from tfedge.engines.native.channel_tracer import Part as Part
from tfedge.engines.native.channel_tracer import Tracer
from tfedge.engines.native.graph import Graph
from tfedge.engines.native.labels import collapse


def find_channels(graph: Graph) -> Channels:
    """Follow the channels of every layer through a graph.

    Args:
        graph: Of a built Keras 3 model.
    """
    tracer = Tracer(graph)
    for index in graph.inputs:
        rank = len(graph.specs[index].shape) - 1
        tracer.values[index] = tracer.labels.fresh(1).reshape([1] * rank)
        tracer.labels.pin(tracer.values[index], "its channels belong to an input of the model")
    for call in graph.calls:
        try:
            results = trace_call(tracer, call)
        except Untraceable as cause:
            results = tracer.leave_alone(call, str(cause))
        for index, values in zip(call.outputs, results, strict=True):
            tracer.values[index] = collapse(values)
    for index in graph.outputs:
        reason = "its channels are an output of the model"
        tracer.labels.pin(tracer.values[index], reason, foremost=True)
    return tracer.settled()
