"""Write a recipe as YAML that explains each key."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 96

# Key: what it is, in a line; and an example that is shown where the recipe does not say it.
KEYS: Mapping[str, tuple[str, str]] = {
    "name": ("What to call it in reports.", ""),
    "model": ("The trained model: a .keras or .h5 file, or module:function.", ""),
    "imports": ("Modules that define layers of your own.", "imports: [my_package.layers]"),
    "unsafe": ("Load a model file that carries code, and run it: only if you trust it.", ""),
    "data": (
        (
            "Samples and labels: an .npz (x, y; or x_train, y_train, x_test, y_test), a folder of "
            "images, the name of a data set, or module:function. {source: ..., validation: 0.2} "
            "judges trials on training samples set aside, not on those of the final figures."
        ),
        "",
    ),
    "input": (
        "How samples become what the model takes: (x * scale - mean) / std.  [as they are]",
        "input: {scale: 0.00392156862745098, mean: [0.5], std: [0.25]}",
    ),
    "metric": (
        (
            "What counts: accuracy, top_5_accuracy, auc, f1_score, mae, mse, mean_iou, ..., "
            "max:module:function; agreement or sqnr_db with the model itself need no labels."
        ),
        "",
    ),
    "max_drop": (
        (
            "How much of it may be lost against the float32 file: points of a percent for accuracy "
            "and the like, else the metric's own unit; or text: 5 % of what that file reaches."
        ),
        "max_drop: 0.5",
    ),
    "limits": (
        "What the file may cost besides.",
        "limits: {size_bytes: 100000, gzip_bytes: 50000, latency_ms: 5}",
    ),
    "train": (
        (
            "How stages train. Also: learning_rate, optimizer, loss, metrics; or, in place of all "
            "this, fit: module:function."
        ),
        "train: {epochs: 5, batch_size: 32}",
    ),
    "stages": ("What is done to the model, in this order; `stages: []` only converts.", ""),
    "convert": (
        "Files to make: float32, float16, dynamic_int8 (kernels only), int8, int16x8.",
        "",
    ),
    "targets": ("Where latency is measured: xnnpack, none (plain CPU), gpu; or edgetpu.", ""),
    "allow_software": ("Let a GPU among the targets be a program on the CPU.", ""),
    "seed": ("Seed of everything random.", ""),
}

STAGES: Mapping[str, str] = {
    "prune": "Set weights to zero, as many as max_drop allows; sparsity: 0.8 sets 80 % of them.",
    "rewrite": "Replace layers by cheaper ones; what costs more than max_drop is taken back.",
    "drop_layers": "Leave out residual blocks and layers, those that are missed least.",
    "low_rank": "Write kernels as products of smaller ones; flops: 0.5 leaves half of the MACs.",
    "structured_prune": "Remove filters and neurons; flops: 0.5 leaves half of the MACs.",
    "remove_dead": "Remove channels that are zero or constant; outputs stay the same.",
    "sparsity_penalty": "Train with a penalty that makes weights small, before they are pruned.",
    "cluster": "Give every kernel a few distinct values, which pack better.",
    "finetune": "Train on.",
    "auto": "To int8: by calibration, or trained quantization-aware where that loses too much; "
    "calibrate or train in place of auto does one of them.",
    "calibrate": "To int8, ranges taken from calibration samples; nothing is trained.",
    "train": "To int8, trained quantization-aware.",
}


def commented(
    values: Mapping[str, Any], reasons: Mapping[str, Sequence[str]], head: Sequence[str]
) -> str:
    """A recipe as YAML, each key with what it means, its alternatives and the reasons for it.

    Args:
        values: The recipe as plain values.
        reasons: Key to further sentences.
        head: Sentences at the top.

    Returns:
        The text; `yaml.safe_load` gives `values` back.

    Example:
        >>> text = commented({"model": "my #1.keras"}, {"model": ["Trained today."]}, [])
        >>> for line in text.splitlines()[2:5]:
        ...     print(line)
        # The trained model: a .keras or .h5 file, or module:function.
        # Trained today.
        model: 'my #1.keras'
    """
    top = [
        *head,
        "All keys but model and data can be left out; those in comments are examples.",
    ]
    blocks = [_comment(top)]
    for key, (meaning, example) in KEYS.items():
        lines = [meaning, *reasons.get(key, ())]
        if key in values:
            blocks.append(_comment(lines) + _entry(key, values[key]))
        elif example:
            blocks.append(_comment(lines) + [f"# {example}"])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _entry(key: str, value: Any) -> list[str]:
    if key != "stages" or not value:
        return [f"{key}: {_flow(value)}"]
    lines = ["stages:"]
    for stage in value:
        name, settings = next(iter(stage.items())) if isinstance(stage, Mapping) else (stage, None)
        meaning = STAGES.get(settings if isinstance(settings, str) else name, "")
        lines += _comment([meaning] if meaning else [], indent="  ")
        lines.append(f"  - {name}: {_flow(settings)}" if settings is not None else f"  - {name}")
    return lines


def _comment(sentences: Sequence[str], indent: str = "") -> list[str]:
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(
            _printable(sentence),
            WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def _printable(text: str) -> str:
    """Text in one line, without what YAML has no place for even in a comment."""
    plain = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return " ".join(plain.split())


def _flow(value: Any) -> str:
    """A value as YAML in one line, quoted where it must be."""
    import yaml

    text: str = yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, sort_keys=False, width=1 << 30
    )
    return text.strip()[1:-1]
