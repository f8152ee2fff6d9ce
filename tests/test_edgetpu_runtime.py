"""The Edge TPU found in folders that stand for a machine; its delegate from a double in C."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import unavailable

import tfedge.runtime.edgetpu as edgetpu
from tfedge.cli import cli
from tfedge.errors import DelegateError, MissingExtraError, SettingsError
from tfedge.runtime.edgetpu import EdgeTpuState, load_edgetpu_delegate, look, open_library
from tfedge.runtime.edgetpu_devices import User, may_use
from tfedge.runtime.edgetpu_versions import TABLE, misfit, tensorflow_of, working_set
from tfedge.runtime.native import find_runtime

LITERT = "ai-edge-litert 2.2.0"
ROOT = User(uid=0, groups=frozenset({0}))
SOMEBODY = User(uid=4001, groups=frozenset({4001}))
COMMUNITY = "16.0tf2.19.1-1"


@pytest.fixture
def machine(tmp_path):
    """A folder that stands for `/`, and functions that put things into it."""
    root = tmp_path / "root"
    root.mkdir()

    def write(name, text=""):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def package(version, name="libedgetpu1-std"):
        write("usr/lib/x86_64-linux-gnu/libedgetpu.so.1")
        other = "Package: zlib1g\nStatus: install ok installed\nVersion: 1\n\n"
        rows = f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n"
        write("var/lib/dpkg/status", f"{other}{rows}")

    def usb(ids=("1a6e", "089a"), *, bus=2, number=4, node=True, mode=0o660):
        folder = f"sys/bus/usb/devices/{bus}-{number}"
        rows = dict(zip(("idVendor", "idProduct"), ids, strict=True), busnum=bus, devnum=number)
        for name, value in rows.items():
            write(f"{folder}/{name}", f"{value}\n")
        if node:
            write(f"dev/bus/usb/{bus:03d}/{number:03d}").chmod(mode)

    def seen(user=ROOT, runtime=LITERT, python=(3, 11), environment=None, kind="x86_64"):
        return look(root, environment or {}, user, runtime, machine=kind, python=python)

    return SimpleNamespace(root=root, write=write, package=package, usb=usb, look=seen)


def test_library_device_and_a_fitting_runtime_are_all_that_is_needed(machine):
    machine.package(COMMUNITY)
    machine.usb()
    state = machine.look()
    assert state.usable
    assert state.problems == ()
    assert state.library.endswith("x86_64-linux-gnu/libedgetpu.so.1")
    assert (state.package, state.community) == (COMMUNITY, True)
    (device,) = state.devices
    assert (device.kind, device.state) == ("usb", "not used yet")
    assert device.path.endswith("dev/bus/usb/002/004")
    assert state.to_dict()["usable"] is True


def test_a_bare_machine_is_told_of_library_and_device_in_this_order(machine):
    library, device = machine.look().problems
    assert library.startswith("The library libedgetpu.so.1 was not found. For Python 3.11 on x86")
    assert COMMUNITY in library
    assert "built by the community, not by Google" in library
    assert "pip install 'ai-edge-litert==2.2.0'" in library
    assert "1a6e:089a or 18d1:9302" in device


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("usr/lib/aarch64-linux-gnu", "aarch64"),
        ("lib/arm-linux-gnueabihf", "armv7l"),
        ("usr/lib64", "x86_64"),
        ("usr/local/lib", "riscv64"),
    ],
)
def test_the_library_is_found_where_systems_put_it(machine, folder, kind):
    machine.write(f"{folder}/libedgetpu.so.1")
    assert machine.look(kind=kind).library == str(machine.root / folder / "libedgetpu.so.1")


def test_the_library_is_found_through_the_loaders_cache(machine):
    machine.write("opt/coral/libedgetpu.so.1")
    machine.write("etc/ld.so.cache", "x\0libedgetpu.so.1\0/opt/coral/libedgetpu.so.1\0y")
    assert machine.look().library.endswith("/opt/coral/libedgetpu.so.1")
    machine.write("etc/ld.so.cache", "x\0libedgetpu.so.1\0/gone/libedgetpu.so.1\0y")
    assert machine.look().library == ""


def test_the_variable_names_the_library_and_is_believed_or_refused(machine, tmp_path):
    machine.package("16.0")
    machine.usb()
    mine = tmp_path / "libmine.so"
    mine.write_bytes(b"")
    state = machine.look(environment={"EDGETPU_LIBRARY": str(mine)})
    assert (state.library, state.package) == (str(mine), "")  # the package is of another one
    assert state.usable
    gone = machine.look(environment={"EDGETPU_LIBRARY": "/gone.so"})
    assert "`/gone.so`, which does not exist. Correct it, or unset it" in gone.problems[0]


def test_googles_library_is_refused_with_runtimes_that_it_crashes_with(machine):
    machine.package("16.0")
    machine.usb()
    assert machine.look(runtime="tflite-runtime 2.11.0", python=(3, 10)).usable
    for runtime in (LITERT, "tflite-runtime 2.14.0"):
        (problem,) = machine.look(runtime=runtime).problems
        assert "is Google's, built against TensorFlow 2.5, and crashes" in problem
        assert f"Received: {runtime}" in problem
        assert COMMUNITY in problem


def test_a_removed_package_does_not_count(machine):
    machine.package("16.0")
    status = machine.root / "var/lib/dpkg/status"
    text = status.read_text().replace(
        "Status: install ok installed\nVersion: 16",
        "Status: deinstall ok config-files\nVersion: 16",
    )
    status.write_text(text)
    assert machine.look().package == ""


@pytest.mark.parametrize(
    ("mode", "group", "problem"),
    [
        (0o660, "own", ""),
        (0o666, "none", ""),
        (0o664, "none", "Give it to the group plugdev: .*udev rule"),
        (0o660, "other", "Run `sudo usermod -aG 4002 "),
        (0o600, "other", "Give it to the group plugdev"),
    ],
)
def test_a_device_that_the_user_may_not_use_is_told_with_the_fix(machine, mode, group, problem):
    if os.geteuid() != 0 and group != "none":
        pytest.skip("only root can give a file to another group")
    machine.package(COMMUNITY)
    machine.usb(mode=mode)
    node = machine.root / "dev/bus/usb/002/004"
    owner = {"own": (0, 4001), "other": (0, 4002), "none": (0, 0)}[group]
    if os.geteuid() == 0:
        os.chown(node, *owner)
    state = machine.look(SOMEBODY)
    if not problem:
        assert state.usable
    else:
        (said,) = state.problems
        assert said.startswith(f"This user may not read and write `{node}`.")
        assert re.search(problem, said)
        assert machine.look(ROOT).usable


def test_permissions_follow_owner_then_group_then_others(tmp_path):
    path = tmp_path / "node"
    path.write_bytes(b"")
    path.chmod(0o066)
    status = path.stat()
    owner = User(uid=status.st_uid or 1, groups=frozenset())
    assert may_use(status, User(uid=0, groups=frozenset()))
    if status.st_uid:
        assert not may_use(status, owner)
    assert may_use(status, User(uid=4001, groups=frozenset({status.st_gid})))
    assert may_use(status, User(uid=4001, groups=frozenset({4001})))


def test_a_device_without_a_node_is_a_container_that_lacks_it(machine):
    machine.package(COMMUNITY)
    machine.usb(node=False)
    (problem,) = machine.look().problems
    assert "`--device /dev/bus/usb`" in problem


def test_one_usable_device_among_others_is_enough(machine):
    machine.package(COMMUNITY)
    machine.usb(node=False)
    machine.usb(("18d1", "9302"), number=7)
    state = machine.look()
    assert state.usable
    assert [device.state for device in state.devices] == ["not used yet", "initialised"]


def test_other_usb_devices_are_none(machine):
    machine.usb(("18d1", "4ee7"))
    machine.usb(("1a6e", "0001"), number=9)
    assert machine.look().devices == ()


def test_a_card_without_its_driver_is_told_from_no_card(machine):
    machine.package(COMMUNITY)
    machine.write("sys/bus/pci/devices/0000:03:00.0/vendor", "0x1ac1\n")
    machine.write("sys/bus/pci/devices/0000:03:00.0/device", "0x089a\n")
    (problem,) = machine.look().problems
    assert "0000:03:00.0" in problem
    assert "gasket-dkms" in problem
    machine.write("dev/apex_0").chmod(0o666)
    state = machine.look(SOMEBODY)
    assert state.usable
    assert (state.devices[0].kind, state.devices[0].state) == ("pci", "ready")


# ---------------------------------------------------------------------------- versions


def test_a_set_is_known_for_every_python_that_tfedge_runs_on():
    for minor in (11, 12, 13):
        for kind in ("x86_64", "aarch64", "armv7l"):
            chosen = working_set((3, minor), kind)
            assert chosen.pairing in TABLE
            assert chosen.pairing.verdict == "works"
            version = chosen.libedgetpu.partition(",")[0]
            name, _, number = chosen.runtime.replace("==", " ").partition(" ")
            assert not misfit(version, name, number)
    assert working_set((3, 12), "riscv64") is None


def test_every_row_of_the_table_names_a_source_and_known_crashes_are_refused():
    for row in TABLE:
        assert row.source
        assert ("community" in row.built_by) == ("tf2" in row.libedgetpu)
    crash = next(row for row in TABLE if row.verdict == "crashes")
    assert misfit(crash.libedgetpu, "tflite-runtime", "2.12.0")
    assert misfit(crash.libedgetpu, "ai-edge-litert", "1.0.0")


def test_what_is_not_known_is_not_called_a_misfit():
    assert misfit("", "ai-edge-litert", "2.3.0") == ""
    assert misfit("17.1", "ai-edge-litert", "2.3.0") == ""
    assert tensorflow_of("16.0pp3") is None
    assert "fits tflite-runtime from 2.11.1" in misfit(COMMUNITY, "tflite-runtime", "2.5.0")


# ---------------------------------------------------------------------------- the delegate

DOUBLE = """
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
void *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                    void (*report)(const char *)) {
  for (size_t i = 0; i < count; i++)
    if (!strcmp(keys[i], "device") && !strcmp(values[i], "usb:9")) {
      fprintf(stderr, "no device 9 on stderr");
      report("no such device");
      return NULL;
    }
  return calloc(1, 256);
}
void tflite_plugin_destroy_delegate(void *delegate) { free(delegate); }
"""


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """A C library that stands for libedgetpu: a delegate that does nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        unavailable("cc", "there is no C compiler")
    folder = tmp_path_factory.mktemp("double")
    (folder / "double.c").write_text(DOUBLE)
    library = folder / "libedgetpu.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "double.c"], check=True, timeout=60
    )
    return str(library)


@pytest.fixture
def here(monkeypatch):
    """Lets a test say what is on this machine."""

    def say(library, *kinds, problems=()):
        devices = tuple(
            edgetpu.EdgeTpuDevice(kind=kind, path=f"/dev/{kind}", state="ready") for kind in kinds
        )
        state = EdgeTpuState(
            library=library,
            package="",
            community=False,
            devices=devices,
            runtime=LITERT,
            python="3.11",
            machine="x86_64",
            problems=problems,
        )
        monkeypatch.setattr(edgetpu, "find_edgetpu", lambda: state)

    return say


def test_a_delegate_is_loaded_from_the_library_that_was_found(double, here):
    here(double, "usb")
    for device in (None, "usb", "usb:0", ":0"):
        delegate = load_edgetpu_delegate(device)
        assert delegate._get_native_delegate_pointer()


def test_a_delegate_that_cannot_be_made_says_the_native_cause(double, here, capfd):
    here(double, "usb")
    with pytest.raises(DelegateError, match="no such device; no device 9 on stderr. The device"):
        load_edgetpu_delegate("usb:9")


@pytest.mark.parametrize("device", ["usb0", "", "tpu", "usb:", "usb:x", 0, "pci:-1"])
def test_a_device_of_another_form_is_refused(here, device):
    here("", problems=("not looked at",))
    with pytest.raises(SettingsError, match="e.g. `usb:0`"):
        load_edgetpu_delegate(device)


def test_a_kind_of_device_that_is_not_there_is_refused(double, here):
    here(double, "usb")
    with pytest.raises(DelegateError, match="There is no Edge TPU on pci.*usb /dev/usb"):
        load_edgetpu_delegate("pci:0")


def test_what_is_missing_is_said_before_anything_is_loaded(here):
    here("/gone.so", problems=("First this.", "Then that."))
    with pytest.raises(DelegateError, match="cannot be used. First this. Then that."):
        load_edgetpu_delegate()


def test_files_that_are_no_delegate_library_are_told_apart(tmp_path, double):
    module = find_runtime()[1]
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(DelegateError, match="does not load"):
        open_library(module, str(text), {})
    with pytest.raises(DelegateError, match="does not load: .*No such file"):
        open_library(module, str(tmp_path / "gone.so"), {})
    assert open_library(module, double, {})


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("libusb-1.0.so.0: cannot open shared object file", "apt-get install libusb-1.0-0"),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found", "for a newer system"),
        ("x.so: wrong ELF class: ELFCLASS32", "for another processor"),
        ("x.so: undefined symbol: foo", "Install libedgetpu anew"),
    ],
)
def test_a_library_that_does_not_load_says_why_and_the_fix(text, fix):
    assert fix in edgetpu._why(OSError(text))


def test_a_missing_runtime_is_one_of_the_problems(monkeypatch):
    def none():
        raise MissingExtraError("A runtime is needed.")

    monkeypatch.setattr(edgetpu, "find_runtime", none)
    state = edgetpu.find_edgetpu()
    assert state.runtime == ""
    assert state.problems[-1] == "A runtime is needed."
    assert len(state.problems) == 1 + len(
        look(edgetpu.Path("/"), os.environ, ROOT, "", machine=state.machine).problems
    )


# ---------------------------------------------------------------------------- the command


def test_doctor_edgetpu_says_what_is_here_the_table_and_one_set(here, monkeypatch):
    here("", problems=("No library.",))
    monkeypatch.setattr(
        "tfedge.accelerators.edgetpu.doctor.find_edgetpu", lambda: edgetpu.find_edgetpu()
    )
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("EDGETPU_COMPILER", raising=False)
    run = CliRunner().invoke(cli, ["doctor", "edgetpu"])
    assert run.exit_code == 1
    assert "Missing: No library." in run.stdout
    assert "apt-get install edgetpu-compiler" in run.stdout
    assert "community (feranick)" in run.stdout
    assert "pip install 'ai-edge-litert==2.2.0'" in run.stdout
    here("/lib/libedgetpu.so.1", "usb", "pci")
    run = CliRunner().invoke(cli, ["doctor", "edgetpu", "--json"])
    assert run.exit_code == 0
    said = json.loads(run.stdout)
    assert said["state"]["usable"] is True
    assert [row["kind"] for row in said["state"]["devices"]] == ["usb", "pci"]
    assert len(said["table"]) == len(TABLE)
    shown = CliRunner().invoke(cli, ["doctor", "edgetpu"])
    assert "/dev/pci: ready" in shown.stdout


def test_doctor_alone_still_looks_at_everything(monkeypatch):
    seen = []
    monkeypatch.setattr(
        sys.modules["tfedge.cli.doctor"], "examine", lambda advance: seen.append(1) or []
    )
    assert CliRunner().invoke(cli, ["doctor", "--json"]).exit_code == 0
    assert seen == [1]
    run = CliRunner().invoke(cli, ["doctor", "--json", "edgetpu"])
    assert run.exit_code == 2
    assert "Write `tfedge doctor edgetpu --json`" in run.output
    assert seen == [1]
