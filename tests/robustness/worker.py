"""Reads damaged files in a process of its own, and says how each read ended.

Command: worker.py FOLDER TASKS (one JSON line per read, as it ends), where the file
TASKS holds ``[[reader, first, count], ...]``. The reader of hand-made cases is
``hostile``; its numbers count the cases.
"""

import faulthandler
import json
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from random import Random

import torch
from hostile import CASES
from mutations import mutated
from samples import SAMPLES

from metaensemble.core.errors import InputError

MOST_SECONDS = 5.0
"""Of the processor, for one read."""
MOST_MB = 300
"""Of memory beyond what the process had, for one read."""
ADDRESSES = 8 * 2**30
"""Bytes of memory that the process may ask for, beyond what it has."""
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.kill"),
    *("subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"),
    *("os.link", "os.symlink", "shutil.rmtree", "shutil.copyfile", "shutil.move"),
)
"""Audit events that no reader may cause."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SEED = 0

_armed = False
_caught: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Note what a reader must not do."""
    if not _armed:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        _caught.append(f"opened {arguments[0]} for writing")
    elif event in FORBIDDEN:
        _caught.append(f"{event} {arguments[:1]}")


def status(key: str) -> float:
    """Return a size of this process in MB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def damage(reader: str, number: int, folder: Path) -> None:
    """Write the reader's sample with one of its files damaged."""
    sample = SAMPLES[reader]
    random = Random(f"{SEED} {reader} {number}")
    seed = random.randrange(4)
    for part, own in (("good", seed), ("other", seed + 1)):
        (folder / part).mkdir()
        sample.write(folder / part, own)
    files = sorted(p for p in (folder / "good").rglob("*") if p.is_file())
    path = random.choice(files)
    twin = folder / "other" / path.relative_to(folder / "good")
    content, other = path.read_bytes(), twin.read_bytes()
    opener = next((o for e, o in sample.open.items() if path.name.endswith(e)), None)
    if opener is not None and random.random() < 0.6:
        inner, close = opener(content)
        path.write_bytes(close(mutated(inner, opener(other)[0], random)))
    else:
        path.write_bytes(mutated(content, other, random))
    shutil.rmtree(folder / "other")


def judged(reader: str, folder: Path) -> dict[str, object]:
    """Read what lies in `folder` and tell how that ended."""
    global _armed
    before = listing(folder)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak
    resident = status("VmRSS")
    _caught.clear()
    cpu, wall = time.process_time(), time.monotonic()
    outcome, message = "read", ""
    _armed = True
    try:
        SAMPLES[reader].read(folder)
    except InputError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = "fault", f"{type(error).__name__}: {error}"
    _armed = False
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    grown = status("VmHWM") - resident
    faults = [message] if outcome == "fault" else []
    if outcome == "refused" and not clear(message, folder):
        faults.append(f"no clear error: {message}")
    if _caught:
        faults.append(f"did more than read: {_caught[0]}")
    if listing(folder) != before:
        faults.append("left files behind")
    if cpu > MOST_SECONDS:
        faults.append(f"took {cpu:.1f} s")
    if grown > MOST_MB:
        faults.append(f"took {grown:.0f} MB")
    return {
        "outcome": "fault" if faults else outcome,
        "message": "; ".join(faults) or message,
        "seconds": wall,
        "memory_mb": max(0.0, grown),
    }


def clear(message: str, folder: Path) -> bool:
    """Tell whether a message is one sentence that names the file."""
    short = len(message.replace(str(folder), "")) < 1000
    return short and "\n" not in message and str(folder) in message


def listing(folder: Path) -> list[str]:
    """Return all that lies in a folder."""
    return sorted(str(path) for path in folder.rglob("*"))


def main() -> None:
    """Do the work that the command line names."""
    root = Path(sys.argv[1])
    tasks = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for reader in {task[0] for task in tasks} - {"hostile"}:
        warm = root / "warm"
        warm.mkdir()
        SAMPLES[reader].write(warm, 0)
        SAMPLES[reader].read(warm)
        shutil.rmtree(warm)
    most = int(status("VmSize") * 2**20) + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    sys.addaudithook(watch)
    for reader, first, count in tasks:
        for number in range(first, first + count):
            folder = root / f"{reader} {number}".replace(" ", "-")
            folder.mkdir(parents=True)
            told: dict[str, object] = {"reader": reader, "number": number}
            if reader == "hostile":
                case = CASES[number]
                (folder / "good").mkdir()
                case.make(folder / "good")
                told |= {"case": case.name, "wanted": case.message, "of": len(CASES)}
                told |= judged(case.reader, folder / "good")
            else:
                damage(reader, number, folder)
                told |= judged(reader, folder / "good")
            print(json.dumps(told), flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
