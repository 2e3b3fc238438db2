import json
import subprocess
import sys
import threading
import time

import pytest

from metaensemble.engine.lines import JsonLines


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "torn", [b'{"event": "begi', b"\0" * 100_000, b'{"a": "' + b"x" * 200_000]
)
def test_a_torn_last_line_is_replaced(tmp_path, torn):
    path = tmp_path / "log.jsonl"
    JsonLines(path).append({"n": 0})
    with path.open("ab") as handle:
        handle.write(torn)
    lines = JsonLines(path)  # the next session
    lines.append({"n": 1})
    lines.append({"n": 2})
    assert rows(path) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_file_of_one_torn_line_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event"')
    JsonLines(path).append({"n": 1})
    assert rows(path) == [{"n": 1}]


def test_a_reader_beside_the_writer_finds_whole_lines(tmp_path):
    """What ends with a newline is whole; a last line may still be on its way."""
    path = tmp_path / "log.jsonl"
    path.touch()
    lines = JsonLines(path)
    text = "x" * 5000

    def write() -> None:
        for n in range(300):
            lines.append({"n": n, "text": text})

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while writer.is_alive():
        whole = path.read_bytes().split(b"\n")[:-1]
        assert [json.loads(line)["n"] for line in whole] == list(range(len(whole)))
        assert len(whole) >= seen  # nothing that was read is taken back
        seen = len(whole)
    writer.join()
    assert [row["n"] for row in rows(path)] == list(range(300))


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('lines', sys.argv[2])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "lines = module.JsonLines(pathlib.Path(sys.argv[1]))\n"
        "while True: lines.append({'text': 'x' * 1000})\n"
    )
    source = sys.modules[JsonLines.__module__].__file__
    assert source
    process = subprocess.Popen([sys.executable, "-c", code, str(path), source])
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    *whole, _ = path.read_bytes().split(b"\n")
    assert all(json.loads(line) == {"text": "x" * 1000} for line in whole)
    JsonLines(path).append({"text": "again"})
    assert len(rows(path)) == len(whole) + 1


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "log.jsonl"
    value = {"nll": float("inf"), "rows": [{"a": float("nan"), "b": 0.5}, (1, "NaN")]}
    JsonLines(path).append(value)
    assert rows(path) == [{"nll": None, "rows": [{"a": None, "b": 0.5}, [1, "NaN"]]}]


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path):
    """The file may grow to 4,000 bytes; the line that would pass them is not there."""
    code = (
        "import resource, signal, sys, pathlib\n"
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('lines', sys.argv[2])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "lines = module.JsonLines(pathlib.Path(sys.argv[1]))\n"
        "failed = 0\n"
        "for n in range(10):\n"
        "    try: lines.append({'n': n, 'text': 'x' * 900})\n"
        "    except OSError: failed += 1\n"
        "lines.append({'n': 10})\n"
        "print(failed)\n"
    )
    path = tmp_path / "log.jsonl"
    source = sys.modules[JsonLines.__module__].__file__
    assert source
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), source],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "6\n"
    assert [row["n"] for row in rows(path)] == [0, 1, 2, 3, 10]


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        JsonLines(tmp_path / "gone" / "log.jsonl").append({})
