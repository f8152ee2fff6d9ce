"""Make a step of a run come out the same whenever it is run on the same machine."""

import contextlib
import random
import re
from collections.abc import Iterator

import numpy as np

from tfedge.errors import SettingsError, TfedgeError, TrainingError
from tfedge.models.looking import KERASES, import_keras

MOST = 2**32 - 1  # NumPy's largest seed
NOT_DETERMINISTIC = re.compile(r"[^.\n]*\bdeterminis[^.\n]*", re.IGNORECASE)


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed everything random and make TensorFlow deterministic while the block runs.

    Two processes that run the same block on the same inputs then hold bit-equal weights at its end,
    whatever either did before. Models must be loaded or made inside of the block: Keras 3 draws the
    seed of a `Dropout` when the layer is made. tf_keras begins again to number the layers that are
    made without a name; Keras 3 goes on numbering them through the whole process.

    Where TensorFlow sees no GPU, its operations are made deterministic
    (`tf.config.experimental.enable_op_determinism`), for the rest of the process: TensorFlow offers
    no way back, and Keras 3 trains without XLA from then on. It matters for `tf.data` pipelines
    that draw random numbers in a parallel `map`, which else give other samples in every run.
    Measured on two cores, training on arrays takes no longer with it (MobileNetV2, both Kerases),
    a `map` of random image operations up to a fifth
    longer; more cores lose more there, since such a `map` runs one element at a time.

    Where there is a GPU, operations are left as they are: the gradients of quantization-aware
    training have no deterministic form on it. Two runs there need not agree bit by bit.

    Nothing is promised between machines, numbers of threads (they change how sums are split), or
    versions of TensorFlow and Keras; nor for code with random numbers of its own, such as
    `numpy.random.default_rng()` without a seed.

    Args:
        seed: Whole number from 0 to 2³² − 1.

    Returns:
        A context manager. At its end, the random numbers of Python and NumPy go on as if it had not
        been; those of TensorFlow and Keras go on from `seed`.

    Raises:
        SettingsError: The seed is out of range.
        TrainingError: An operation in the block has no deterministic form.
        MissingExtraError: TensorFlow or Keras is not installed.

    Example:
        >>> with reproducible(7):
        ...     first = np.random.rand()
        >>> with reproducible(7):
        ...     print(first == np.random.rand())
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST:
        raise SettingsError(f"A seed is a whole number from 0 to 2³² − 1. Received: {seed!r}.")
    states = random.getstate(), np.random.get_state()
    tensorflow = import_keras("tensorflow")
    if not tensorflow.config.list_physical_devices("GPU"):
        tensorflow.config.experimental.enable_op_determinism()
    _begin_anew(seed)
    try:
        yield
    except TfedgeError:
        raise
    except (tensorflow.errors.UnimplementedError, RuntimeError) as error:
        if said := NOT_DETERMINISTIC.search(str(error)):
            raise TrainingError(_unable(said[0])) from error
        raise
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _begin_anew(seed: int) -> None:
    """Seed Python, NumPy, TensorFlow and both Kerases, which keep seeds of their own."""
    for name in KERASES:
        import_keras(name).utils.set_random_seed(seed)
    import_keras("tf_keras").backend.reset_uids()  # TFMOT leaves its layers to be numbered
    random_ops = import_keras("tensorflow").random
    random_ops.set_global_generator(random_ops.Generator.from_seed(seed))


def _unable(said: str) -> str:
    return (
        "A run gives the same weights every time, so each of its operations must have a "
        f"deterministic form. One has none; TensorFlow says: {said.strip()}. Replace the layer or "
        "the part of the data pipeline that uses it; random numbers need a seed "
        "(`tf.random.Generator.from_seed`)."
    )
