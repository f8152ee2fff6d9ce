"""Every stage that trains, on two virtual CPUs and in two processes: as on one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
# A range is the mean of what each device saw of its part of a batch; all else is the same sum.
RANGES, ROUNDED, SAME = {"rtol": 0.25}, {"atol": 1e-2}, {"atol": 1e-5}


def start(way, library, variants, folder, **variables):
    folder.mkdir()
    command = [sys.executable, str(HERE / "devices_worker.py"), way, library, variants, str(folder)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, folder):
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-2000:]
    return {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}


def worker(index, ports):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


def free_ports(count):
    with_port = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_port]
    for server in with_port:
        server.close()
    return ports


def weights(result):
    return {key: result[key].astype(float) for key in result.files if key not in ("kept", "used")}


def assert_like(ours, theirs, strategy="", variant="plain"):
    names = [name for name in ours if name.startswith(f"{variant}-")]
    assert len(names) >= 3
    for name in names:
        stage = name.partition("-")[2]
        assert bool(ours[name]["kept"]), f"{stage} changed the model that came in"
        assert str(ours[name]["used"]).startswith(strategy)
        expected = weights(theirs[f"plain-{stage}"])
        for key, value in weights(ours[name]).items():
            tolerance = SAME if stage != "quantize" else ROUNDED if value.ndim else RANGES
            np.testing.assert_allclose(value, expected[key], **tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras") / "one"
    return finish(start("one", "keras", "plain,mixed", folder), folder)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras") / "two"
    return finish(start("mirrored", "keras", "plain,jit", folder), folder), folder


def test_two_devices_end_where_one_ends(alone, mirrored):
    assert_like(mirrored[0], alone, "MirroredStrategy")


@pytest.mark.slow
def test_xla_ends_where_the_graph_ends(alone, tmp_path):
    folder = tmp_path / "jit"
    assert_like(finish(start("one", "keras", "jit", folder), folder), alone, variant="jit")


def test_mixed_precision_trains_and_converts(alone):
    names = [name for name in alone if name.startswith("mixed-")]
    assert len(names) == sum(name.startswith("plain-") for name in alone)
    for name in names:
        expected = weights(alone[name.replace("mixed", "plain")])
        for key, value in weights(alone[name]).items():  # a few weights change cluster
            assert np.isfinite(value).all()
            assert np.abs(value - expected[key]).mean() < 0.02 + 0.05 * np.abs(expected[key]).mean()


def test_xla_on_two_cpu_devices_is_refused_with_the_reason(mirrored):
    text = (mirrored[1] / "jit.txt").read_text()
    assert "TensorFlow's XLA cannot reach" in text and "jit_compile=False" in text


def test_several_machines_with_keras_3_are_refused_with_what_works(tmp_path):
    folder = tmp_path / "refused"
    config = worker(0, free_ports(1))
    assert not finish(start("worker", "keras", "plain", folder, TF_CONFIG=config), folder)
    text = (folder / "plain.txt").read_text()
    assert "MultiWorkerMirroredStrategy" in text and "a tf_keras model" in text


def test_two_processes_end_where_one_ends(tmp_path):
    ports = free_ports(2)
    folders = [tmp_path / str(index) for index in range(3)]
    running = [start("one", "tf_keras", "plain", folders[2])] + [
        start("worker", "tf_keras", "plain", folders[index], TF_CONFIG=worker(index, ports))
        for index in range(2)
    ]
    expected, *ended = (
        finish(process, folder)
        for process, folder in zip(running, [folders[2], *folders[:2]], strict=True)
    )
    for results in ended:
        assert_like(results, expected, "CollectiveAllReduceStrategy")


@pytest.mark.slow
def test_tf_keras_on_two_devices_and_under_xla_ends_where_one_ends(tmp_path):
    one = finish(start("one", "tf_keras", "plain,jit", tmp_path / "one"), tmp_path / "one")
    two = finish(start("mirrored", "tf_keras", "plain", tmp_path / "two"), tmp_path / "two")
    assert_like(two, one, "MirroredStrategy")
    assert_like(one, one, variant="jit")
