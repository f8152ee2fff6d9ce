"""Open a `.tflite` model on a delegate, or say why it cannot run there."""

import os
from typing import Final

from tfedge.errors import DelegateError, SettingsError, did_you_mean
from tfedge.inspection import check_sound, load_bytes
from tfedge.inspection.decode import Fields
from tfedge.inspection.layout import EDGETPU_OPERATOR
from tfedge.inspection.soundness import operator_name
from tfedge.runtime.backend import Backend
from tfedge.runtime.interpreter import InterpreterBackend, LoadedDelegate
from tfedge.runtime.model import OpenModel, Request, ends_of

DELEGATES: Final = ("none", "xnnpack", "gpu", "edgetpu")
PRECISIONS: Final = ("fp32", "fp16")


def open_model(
    model: bytes | str | os.PathLike[str],
    *,
    delegate: str | LoadedDelegate | None = None,
    threads: int = 1,
    keep_tensors: bool = False,
    precision: str = "fp32",
    allow_software: bool = False,
) -> OpenModel:
    """Open a `.tflite` model on a delegate, or say why it cannot run there.

    Never does anything else run it: not the CPU in place of the GPU, nor the other way round.

    The model runs in this process. Files of unknown origin are better looked at by `tfedge inspect`
    and run by `tfedge verify` first, which do so in a child process, within limits.

    Args:
        model: Path of the file, or its content. It is checked for soundness first.
        delegate: `"xnnpack"` (the default); `"none"` (LiteRT's own kernels; the default with
            `keep_tensors`, as a delegate does not write its inner tensors); `"gpu"` (the whole
            model, or an error); `"edgetpu"` (a file compiled for it); or what `load_delegate`
            returned.
        threads: Threads of the CPU kernels.
        keep_tensors: Keep every activation of the last run for `OpenModel.tensor`.
        precision: What a GPU computes floats in: `"fp32"`, or `"fp16"`, which is faster on most
            and coarser. Other delegates compute in fp32.
        allow_software: Whether a GPU that is a program on the CPU, such as SwiftShader, counts.

    Returns:
        The model, ready to run. It is a context manager.

    Raises:
        FileFormatError: No such file, or it is not sound.
        SettingsError: An unknown delegate, or a setting out of its range.
        DelegateError: The delegate is not there, or does not take the model, or the runtime
            refused the model; with what native code said, and the next move.
        MissingExtraError: No runtime is installed.

    Example:
        >>> with open_model("model_int8.tflite", threads=2) as model:  # doctest: +SKIP
        ...     scores = model.predict(images)
    """
    request = Request(
        delegate=delegate or ("none" if keep_tensors else "xnnpack"),
        threads=threads,
        keep_tensors=keep_tensors,
        precision=precision,
        allow_software=allow_software,
    )
    check_request(request)
    data, path = load_bytes(model)
    return open_sound(data, check_sound(data), request, path=path)


def open_sound(
    data: bytes, fields: Fields, request: Request, *, path: str | None = None
) -> OpenModel:
    """Open a file that `check_sound` has decoded, as `check_request` has found right."""
    backend = _backend(data, fields, request, path or "the model")
    return OpenModel(backend, fields, request, path=path)


def _backend(data: bytes, fields: Fields, request: Request, path: str) -> Backend:
    if request.delegate == "gpu":
        from tfedge.runtime.gpu import GpuBackend

        inputs, outputs = ends_of(fields)
        return GpuBackend(
            data,
            fields,
            path=path,
            precision=request.precision,
            allow_software=request.allow_software,
            inputs=inputs,
            outputs=outputs,
        )
    loaded = request.delegate if isinstance(request.delegate, LoadedDelegate) else None
    if request.delegate == "edgetpu":
        from tfedge.runtime.edgetpu import load_edgetpu_delegate

        _check_compiled(fields, path)
        loaded = LoadedDelegate(name="edgetpu", handle=load_edgetpu_delegate())
    return InterpreterBackend(
        data,
        fields,
        path=path,
        delegate=request.name,
        threads=request.threads,
        keep_tensors=request.keep_tensors,
        loaded=loaded,
    )


def _check_compiled(fields: Fields, path: str) -> None:
    """The Edge TPU's delegate takes what its compiler wrote, and leaves all else in silence."""
    kinds = {operator_name(fields, op) for op in fields["subgraphs"][0]["operators"] or []}
    if EDGETPU_OPERATOR not in kinds:
        raise DelegateError(
            f"The Edge TPU runs files that were compiled for it (operator {EDGETPU_OPERATOR!r}). "
            f"Received: {path}, with {', '.join(sorted(kinds)) or 'no operator'}. Compile it: "
            f"`tfedge compile {path if path != 'the model' else 'MODEL'} --target edgetpu`."
        )


def check_delegate(delegate: str) -> str:
    """The name of a delegate, if there is such a one.

    Raises:
        SettingsError: There is no such delegate.
    """
    if delegate not in DELEGATES:
        raise SettingsError(
            f"`delegate` must be one of {list(DELEGATES)}. Received: {delegate!r}."
            f"{did_you_mean(delegate, DELEGATES)}"
        )
    return delegate


def check_precision(precision: str) -> str:
    """The precision of a GPU, if there is such a one.

    Raises:
        SettingsError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise SettingsError(
            f"`precision` must be one of {list(PRECISIONS)}. Received: {precision!r}."
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    return precision


def check_request(request: Request) -> None:
    """Check settings against each other.

    Raises:
        SettingsError: One is out of its range, or means nothing with this delegate.
    """
    if not isinstance(request.delegate, LoadedDelegate):
        check_delegate(request.delegate)
    check_precision(request.precision)
    threads = request.threads
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise SettingsError(f"`threads` is a whole number of at least 1. Received: {threads!r}.")
    if request.keep_tensors and request.delegate != "none":
        raise SettingsError(
            f"`keep_tensors=True` needs `delegate='none'`: a delegate does not write the tensors "
            f"inside it. Received: delegate={request.name!r}."
        )
    if request.delegate == "gpu" and threads != 1:
        raise SettingsError(
            f"`threads` are those of the CPU kernels. Received: threads={threads} for the GPU. "
            "Leave them out."
        )
    if request.delegate != "gpu" and (request.precision != "fp32" or request.allow_software):
        given = (
            "allow_software=True" if request.allow_software else f"precision={request.precision!r}"
        )
        raise SettingsError(
            f"`precision` and `allow_software` are settings of `delegate='gpu'`. Received: {given} "
            f"for {request.name!r}. Leave it out."
        )
