import keras
import pytest

from tfedge.engines.native.costs import costs_of, peak_bytes, total_macs
from tfedge.engines.native.graph import read_graph
from tfedge.errors import UnsupportedModelError

L = keras.layers


def graph_of(*layers, shape):
    return read_graph(keras.Sequential([keras.Input(shape), *layers]))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (L.Dense(5), (7,), 7 * 5),
        (L.Dense(5), (3, 7), 3 * 7 * 5),
        (L.Conv2D(4, 3, padding="same"), (6, 6, 2), 36 * 9 * 2 * 4),
        (L.Conv2D(4, 3, strides=2, groups=2), (7, 7, 2), 9 * 9 * 1 * 4),
        (L.DepthwiseConv2D(3, padding="same"), (6, 6, 2), 36 * 9 * 2),
        (L.SeparableConv1D(4, 3, padding="same"), (6, 2), 6 * (3 * 2 + 2 * 4)),
        (L.Conv2DTranspose(4, 3, strides=2), (5, 5, 2), 25 * 9 * 2 * 4),
        (L.LSTM(5), (6, 8), 6 * (8 * 20 + 5 * 20)),
        (L.Bidirectional(L.GRU(5)), (6, 8), 2 * 6 * (8 * 15 + 5 * 15)),
        (L.EinsumDense("abc,cde->abde", (6, 2, 3)), (6, 8), 6 * 8 * 2 * 3),
        (L.BatchNormalization(), (6, 8), 0),
    ],
)
def test_multiply_accumulates_are_those_of_the_definition(layer, shape, macs):
    assert total_macs(graph_of(layer, shape=shape)) == macs


def test_attention_counts_projections_and_both_products():
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, L.MultiHeadAttention(2, 4)(inputs, inputs))
    projections, products = 6 * 4 * 8 * 2 * 4, 2 * 6 * 6 * 2 * 4
    assert total_macs(read_graph(model)) == projections + products


def test_published_networks_have_their_published_counts():
    model = keras.applications.MobileNetV2(weights=None)
    assert total_macs(read_graph(model)) == pytest.approx(300e6, rel=0.01)


def test_parameters_add_up_to_those_of_the_model_also_where_layers_are_shared():
    first, second, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    model = keras.Model([first, second], L.Add()([dense(first), dense(second)]))
    rows = costs_of(read_graph(model))
    assert sum(row.parameters for row in rows) == model.count_params()
    assert sum(row.macs for row in rows) == 2 * 12


def test_a_tensor_takes_memory_until_it_was_read_last():
    inputs = keras.Input((10,))
    wide = L.Dense(100)(inputs)
    model = keras.Model(inputs, L.Concatenate()([L.Dense(50)(wide), inputs]))
    assert peak_bytes(read_graph(model)) == 4 * (10 + 100 + 50)


def test_an_axis_without_a_size_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"size of every axis.*fixed"):
        total_macs(graph_of(L.Conv2D(4, 3), shape=(None, None, 3)))
