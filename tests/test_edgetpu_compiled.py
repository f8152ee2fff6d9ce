import struct

import flatbuffers
import numpy as np
import pytest
from flatbuffers import flexbuffers

from tfedge.accelerators.edgetpu.compiled import ON_CPU, inspect_compiled
from tfedge.accelerators.edgetpu.package import read_packages
from tfedge.accelerators.edgetpu.preflight import preflight
from tfedge.errors import FileFormatError

COMPILED = {
    "mobilenet_v1_0.25_128_quant_edgetpu.tflite": [],
    "keras_lstm_mnist_ptq_edgetpu.tflite": [],
    "deeplabv3_mnv2_dm05_pascal_quant_edgetpu.tflite": [
        *("RESIZE_BILINEAR", "QUANTIZE", "CONCATENATION", "CONV_2D", "CONV_2D"),
        *("RESIZE_BILINEAR", "RESIZE_BILINEAR", "ARG_MAX"),
    ],
}


def executable(kind, parameters, *, instructions=b"", chip="beagle", scratch=0):
    """A program, built by Google's FlatBuffers library from the published schema."""
    builder = flatbuffers.Builder(0)
    chip_at = builder.CreateString(chip)
    parameters_at = builder.CreateByteVector(parameters)
    stream = builder.CreateByteVector(instructions)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, stream, 0)
    bitstream = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(bitstream)
    bitstreams = builder.EndVector()
    builder.StartObject(17)
    builder.PrependInt32Slot(4, scratch, 0)
    builder.PrependUOffsetTRelativeSlot(5, bitstreams, 0)
    builder.PrependUOffsetTRelativeSlot(6, parameters_at, 0)
    builder.PrependUOffsetTRelativeSlot(10, chip_at, 0)
    builder.PrependInt16Slot(13, kind, 0)
    builder.Finish(builder.EndObject(), b"DWN1")
    return bytes(builder.Output())


def package(programs, *, runtime=14, compiler="16.0", identifier=b"DWN1"):
    inner = flatbuffers.Builder(0)
    places = [inner.CreateByteVector(program) for program in programs]
    inner.StartVector(4, len(places), 4)
    for place in reversed(places):
        inner.PrependUOffsetTRelative(place)
    vector = inner.EndVector()
    inner.StartObject(1)
    inner.PrependUOffsetTRelativeSlot(0, vector, 0)
    inner.Finish(inner.EndObject())
    builder = flatbuffers.Builder(0)
    multi, name = builder.CreateByteVector(bytes(inner.Output())), builder.CreateString(compiler)
    builder.StartObject(8)
    builder.PrependInt32Slot(0, runtime, 0)
    builder.PrependUOffsetTRelativeSlot(1, multi, 0)
    builder.PrependUOffsetTRelativeSlot(4, name, 0)
    builder.Finish(builder.EndObject(), identifier)
    return bytes(builder.Output())


def options_of(blob, *, more=()):
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("1", 0)
        builder.Key("4")
        builder.Blob(blob)
        builder.Int("5", -1)
        builder.Key("7")
        with builder.Vector():
            for other in more:
                builder.Blob(other)
    return bytes(builder.Finish())


GOOD = package(
    [executable(2, b"\x01" * 48, instructions=b"i" * 96, scratch=672), executable(1, b"\x02" * 400)]
)


@pytest.fixture(scope="module")
def compiled_file(build_file):
    """A file of a custom operator and a CONCATENATION that is left on the CPU."""

    def build(options, *, name="edgetpu-custom-op", customs=1):
        tensors = [
            {"name": f"t{i}", "shape": (1, 4, 4, 3), "dtype": "int8", "scale": 0.1}
            for i in range(customs + 1)
        ]
        tensors.append({"name": "net/left/concat", "shape": (1, 4, 4, 6), "dtype": "int8",
                        "scale": 0.1})  # fmt: skip
        operators = [("CUSTOM", [i], [i + 1]) for i in range(customs)]
        operators.append(("CONCATENATION", [0, customs], [customs + 1]))

        def edit(model):
            for i in range(customs):
                model.operatorCodes[i].customCode = name
                model.subgraphs[0].operators[i].customOptions = np.frombuffer(options, np.uint8)

        return build_file(tensors, operators, edit=edit)

    return build


@pytest.mark.parametrize("name", COMPILED)
def test_published_compiled_files_are_read(shared_file, name):
    compiled = inspect_compiled(shared_file(name))
    assert compiled.segments == 1
    assert [row.name for row in compiled.cpu_operators] == COMPILED[name]
    assert compiled.runtime_version == 12
    assert compiled.notes == ()
    assert {program.chip for program in compiled.packages[0].executables} == {"beagle"}
    kinds = {program.kind for program in compiled.packages[0].executables}
    assert kinds == {"parameter-caching", "execution-only"}
    stored = compiled.parameter_bytes_on_chip + compiled.parameter_bytes_streamed
    assert 0 < stored < compiled.size_bytes


def test_a_file_that_is_not_compiled_is_none(build_file):
    tensors = [{"name": n, "shape": (1, 8), "dtype": "int8", "scale": 0.1} for n in "xy"]
    assert inspect_compiled(build_file(tensors, [("RELU", [0], [1])])) is None


def test_a_custom_operator_of_another_kind_is_none(compiled_file):
    assert inspect_compiled(compiled_file(options_of(GOOD), name="Postprocess")) is None


def test_what_the_package_holds_is_read(compiled_file):
    compiled = inspect_compiled(compiled_file(options_of(GOOD)))
    assert (compiled.runtime_version, compiled.compiler_version) == (14, "16.0")
    assert (compiled.parameter_bytes_on_chip, compiled.parameter_bytes_streamed) == (400, 48)
    first, second = compiled.packages[0].executables
    assert (first.kind, first.instruction_bytes, first.scratch_bytes) == ("execution-only", 96, 672)
    assert (second.kind, second.chip) == ("parameter-caching", "beagle")
    (left,) = compiled.cpu_operators
    assert (left.index, left.name, left.reason, left.layer) == (1, "CONCATENATION", ON_CPU, "left")
    assert "runtime 14 or newer" in str(compiled)


def test_segments_add_up_and_the_newest_runtime_counts(compiled_file):
    compiled = inspect_compiled(compiled_file(options_of(GOOD), customs=3))
    assert (compiled.segments, len(compiled.packages)) == (3, 3)
    assert compiled.parameter_bytes_on_chip == 1200


def test_a_package_for_several_chips_counts_once(compiled_file):
    other = package([executable(0, b"\x03" * 80)], runtime=15)
    compiled = inspect_compiled(compiled_file(options_of(GOOD, more=[other])))
    assert len(read_packages(options_of(GOOD, more=[other]))) == 2
    assert (compiled.runtime_version, compiled.parameter_bytes_on_chip) == (14, 400)


def test_parameters_of_a_stand_alone_executable_stream(compiled_file):
    options = options_of(package([executable(0, b"\x03" * 80)]))
    compiled = inspect_compiled(compiled_file(options))
    assert (compiled.parameter_bytes_on_chip, compiled.parameter_bytes_streamed) == (0, 80)


HOSTILE = {
    "empty": b"",
    "two bytes": b"\x26\x01",
    "no map": bytes(flexbuffers.Dumps([1, 2, 3])),
    "no package": bytes(flexbuffers.Dumps({"1": 0})),
    "number for a package": bytes(flexbuffers.Dumps({"4": 7})),
    "short package": options_of(b"DWN1"),
    "another identifier": options_of(package([], identifier=b"DWN9")),
    "unknown kind": options_of(package([executable(9, b"")])),
    "root outside": options_of(struct.pack("<I", 1 << 30) + GOOD[4:]),
    "program cut": options_of(package([executable(1, b"\x02" * 400)[:40]])),
    "too many programs": options_of(package([b""] * 300)),
}


@pytest.mark.parametrize("options", HOSTILE.values(), ids=HOSTILE)
def test_a_package_that_cannot_be_read_is_unknown_and_says_why(compiled_file, options):
    with pytest.raises(FileFormatError, match="Received: .* compile the model again"):
        read_packages(options)
    compiled = inspect_compiled(compiled_file(options))
    assert compiled.segments == 1
    assert compiled.runtime_version is None
    assert compiled.parameter_bytes_on_chip is None
    assert compiled.parameter_bytes_streamed is None
    assert "cannot be looked into" in compiled.notes[0]
    assert "unknown" in str(compiled)
    report = preflight(compiled_file(options))
    assert report.already_compiled
    assert "unknown parameter memory" in str(report)
    report.to_dict()


def test_hostile_bytes_give_an_error_or_a_package_never_anything_else():
    rng = np.random.default_rng(0)
    whole = np.frombuffer(options_of(GOOD), np.uint8)
    outcomes = {"read": 0, "refused": 0}
    for trial in range(4000):
        damaged = whole.copy()
        places = rng.integers(0, len(whole), 1 + trial % 4)
        damaged[places] = rng.integers(0, 256, len(places), np.uint8)
        content = damaged.tobytes()
        if trial % 5 == 0:
            content = content[: rng.integers(0, len(content))]
        try:
            read_packages(content)
            outcomes["read"] += 1
        except FileFormatError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 100  # damage in parameters and instructions changes no figure
    assert outcomes["refused"] > 100


def test_programs_that_share_their_bytes_cost_no_memory(compiled_file):
    import tracemalloc

    inner = flatbuffers.Builder(0)
    place = inner.CreateByteVector(executable(1, b"\x02" * 2_000_000))
    inner.StartVector(4, 250, 4)
    for _ in range(250):
        inner.PrependUOffsetTRelative(place)
    vector = inner.EndVector()
    inner.StartObject(1)
    inner.PrependUOffsetTRelativeSlot(0, vector, 0)
    inner.Finish(inner.EndObject())
    builder = flatbuffers.Builder(0)
    multi = builder.CreateByteVector(bytes(inner.Output()))
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(1, multi, 0)
    builder.Finish(builder.EndObject(), b"DWN1")
    options = options_of(bytes(builder.Output()))
    tracemalloc.start()
    (read,) = read_packages(options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(read.executables) == 250
    assert peak < 10_000_000


def test_many_custom_operators_are_not_all_looked_into(compiled_file):
    compiled = inspect_compiled(compiled_file(b"", customs=70))
    assert compiled.segments == 70
    assert "Only the first 64" in compiled.notes[-1]
