"""What becomes of a command whose child crashes, fills the memory, hangs or is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tfedge.cli._guard import guarded

ROOT = Path(__file__).parent.parent

# The command line with one command more, which does what it is told.
COMMAND = """
import ctypes, os, signal, subprocess, sys, tempfile, time
import click
from pathlib import Path
from tfedge.cli import cli, main
from tfedge.cli._guard import guarded, read_first

@click.command()
@click.argument("act")
@click.option("--dry-run", is_flag=True)
@guarded("act", when=os.environ.get("WHEN"))
def fake(act, dry_run):
    exec(act)

cli.add_command(fake)
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def start(tmp_path):
    """Start the fake command; its temporary files lie in `tmp`."""
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "tmp").mkdir()

    def process(act, *options, **environment):
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "command.py"), "fake", act, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}
            | environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return process


@pytest.fixture
def run(start):
    def finish(act, *options, **settings):
        process = start(act, *options, **settings)
        output, errors = process.communicate("typed", timeout=60)
        return process.returncode, output, errors

    return finish


@pytest.mark.parametrize("code", [0, 1, 2])
def test_streams_and_exit_code_are_those_of_the_command(code, run):
    act = f"print(sys.stdin.read()); print('said', file=sys.stderr); sys.exit({code})"
    assert run(act) == (code, "typed\n", "said\n")


def test_an_error_of_the_command_is_told_once(run):
    code, output, errors = run("raise ValueError('no')")
    assert (code, output) == (1, "")
    assert errors == "tfedge: error: ValueError: no (see where with --traceback)\n"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV) in native code"),
        ("ctypes.string_at(0)", "crashed (SIGSEGV)"),
        ("os.write(2, b'one\\ntwo\\n'); os.abort()", "LiteRT, TensorFlow or HDF5 (two)."),
        ("os._exit(77)", "crashed (exit code 77)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "most likely because the memory was full"),
    ],
)
def test_a_crash_is_one_clear_line(act, words, run):
    code, output, errors = run(act)
    assert (code, output) == (1, "")
    assert errors.startswith(f"tfedge: error: Working on `{act}") and words in errors
    assert errors.count("\n") == 1 and "damaged or hostile" in errors


@pytest.mark.parametrize(
    "act",
    [
        "time.sleep(60)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(60)",
        "subprocess.run(['sleep', '60'])",
    ],
)
def test_what_takes_too_long_is_ended(act, run):
    start = time.monotonic()
    code, _, errors = run(act, "--time-limit", "1")
    assert code == 1 and "took longer than 1 s and was ended" in errors
    assert time.monotonic() - start < 20


def test_reading_that_goes_in_circles_is_ended_though_there_is_time(run):
    act = (
        "import tfedge.cli._guard as guard, tfedge.models.reading as reading\n"
        "guard.READING_SECONDS = 0.5\n"
        "reading.read_file = lambda path: time.sleep(60)\n"
        "read_first(Path('command.py'))"
    )
    code, _, errors = run(act)
    assert code == 1 and "took longer than such files take" in errors


FILL = "x = b'x' * 600_000_000; time.sleep(60)"
LIMITED = """
import subprocess, sys, time
from tfedge.cli._guard import Limits, split

ending = split(Limits(memory_bytes=400 * 2**20, seconds=60))
if ending is None:
    {act}
    sys.exit(0)
print(ending.cause, ending.code)
"""


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (FILL, "memory -9"),
        (f'subprocess.run([sys.executable, "-c", """import time; {FILL}"""])', "memory -9"),
        ("x = b'x' * 20_000_000; time.sleep(0.5)", " 0"),
    ],
    ids=["the child", "its own child", "a small one"],
)
def test_what_fills_the_memory_is_ended(act, expected):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(act=act)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == expected + "\n", done.stderr


def started(process):
    """The number of the child, which the fake command prints."""
    return int(process.stdout.readline())


TELL = "print(os.getpid(), flush=True)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_which_cleans_up(number, start, tmp_path):
    act = TELL + "with tempfile.NamedTemporaryFile(): time.sleep(60)"
    process = start(act)
    child = started(process)
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "tfedge: error: Interrupted. No file was left half-written.\n"
    assert not alive(child) and list((tmp_path / "tmp").iterdir()) == []


def test_a_command_that_does_not_react_is_ended_at_the_second_signal(start):
    process = start(TELL + "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)")
    child = started(process)
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=4)
    assert process.returncode == 1 and "Interrupted" in errors and not alive(child)


def test_a_paused_command_is_paused_whole_and_goes_on(start):
    process = start(TELL + "time.sleep(1); print('done')", "--time-limit", "4")
    child = started(process)
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(process.pid) == "T" and state(child) == "T")
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60) == ("done\n", "") and process.returncode == 0


def test_the_child_does_not_outlive_its_parent(start):
    process = start(TELL + "time.sleep(60)")
    child = started(process)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not alive(child))


def test_what_a_crash_leaves_is_cleared_away(start, tmp_path):
    act = (
        "other = subprocess.Popen(['sleep', '60']); print(other.pid, flush=True)\n"
        "open(tempfile.mkdtemp() + '/file', 'w').write('left'); os.abort()"
    )
    process = start(act)
    other = started(process)
    process.communicate(timeout=60)
    wait_for(lambda: not alive(other))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list(tmp_path.glob("core*"))


def state(number):
    try:
        return Path("/proc", str(number), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(number):
    return state(number) not in ("", "Z")


def wait_for(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_guard_costs_little(run):
    """From the fork to the work, and from its end to the parent's."""
    act = (
        "import tfedge.cli._guard as guard\n"
        "times = []\n"
        "for _ in range(5):\n"
        "    begin = time.perf_counter()\n"
        "    if guard.split(guard.Limits()) is None: os._exit(0)\n"
        "    times.append(time.perf_counter() - begin)\n"
        "print(min(times))"
    )
    code, output, errors = run(act, "--dry-run", WHEN="dry_run")
    assert code == 0, errors
    assert float(output) < 0.15


def test_a_command_is_guarded_only_with_the_flag_that_asks_for_it(run):
    alone = run("print(os.getpgid(0) == os.getpid())", WHEN="dry_run")
    flagged = run("print(os.getpgid(0) == os.getpid())", "--dry-run", WHEN="dry_run")
    assert (alone[1], flagged[1]) == ("False\n", "True\n")


def test_a_caller_from_python_does_the_work_itself():
    @click.command()
    @guarded()
    def where():
        click.echo(os.getpid())

    assert CliRunner().invoke(where, []).stdout == f"{os.getpid()}\n"
