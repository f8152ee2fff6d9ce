"""Load, save, copy and look into Keras models, of Keras 3 and of tf_keras alike.

    model = load_model("classifier.h5")     # safe by default: files that carry code are refused
    keras_of(model)                         # "keras" or "tf_keras"
    copy_model(model)                       # an own copy; the model itself stays bit-equal
    [layer.name for layer in layers_of(model)]

Importing this package imports no Keras; using it imports the Keras that the model is of.
"""

from tfedge.models.compiling import compile_like as compile_like
from tfedge.models.compiling import is_compiled as is_compiled
from tfedge.models.compiling import own_objects as own_objects
from tfedge.models.copying import copy_model as copy_model
from tfedge.models.equality import output_differences as output_differences
from tfedge.models.keras3 import to_keras3 as to_keras3
from tfedge.models.loading import load_model as load_model
from tfedge.models.looking import check_finite as check_finite
from tfedge.models.looking import check_keras3 as check_keras3
from tfedge.models.looking import check_rebuildable as check_rebuildable
from tfedge.models.looking import check_strategy as check_strategy
from tfedge.models.looking import choose_layers as choose_layers
from tfedge.models.looking import import_keras as import_keras
from tfedge.models.looking import is_functional as is_functional
from tfedge.models.looking import is_model as is_model
from tfedge.models.looking import keras_of as keras_of
from tfedge.models.looking import layers_of as layers_of
from tfedge.models.looking import output_names as output_names
from tfedge.models.looking import scope_of as scope_of
from tfedge.models.saving import save_model as save_model
from tfedge.models.seeding import reproducible as reproducible
