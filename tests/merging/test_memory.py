import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from metaensemble.data import load_data
from metaensemble.engine import RunLog
from metaensemble.merging import GreedySoup, LearnedSoup
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, Member, MemberInfo, save_member
from metaensemble.workflows.options import RunOptions, open_session
from metaensemble.workflows.students import bench_of, merge_student

torch.set_num_threads(1)
folder, name = Path(sys.argv[1]), "mlp,depth=20,width=480"
data = load_data("digits", limit_train=40)
session = open_session(
    RunOptions(device="cpu", cache=folder / "cache", quiet=True), data, None,
    RunLog(quiet=True),
)
info = MemberInfo(
    architecture=name, classes=data.classes, input_shape=data.input_shape,
    normalization=data.normalization,
)
network = init_model(name, 10, data.input_shape, 0)
size = sum(tensor.nbytes for tensor in network.state_dict().values())
members = []
for number in range(8):
    state = {key: t + 1e-3 * number for key, t in network.state_dict().items()}
    members.append(save_member(folder / f"{number}.safetensors", state, info))
ensemble = Ensemble(tuple(members))
del network, state
session.cache.ensemble_logits(ensemble, data.train)
session.cache.ensemble_logits(ensemble, data.validation)

def anonymous():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)

# Warm up: what is imported at the first use is no part of the growth.
merge_student(session, Ensemble(ensemble.members[:1]), GreedySoup())
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
before = anonymous()
thread = threading.Thread(target=watch)
thread.start()
methods = {"greedy": GreedySoup(), "learned": LearnedSoup(hold=False, passes=2)}
merge_student(session, ensemble, methods[sys.argv[2]])
done = True
thread.join()
print((peak - before) / size)
"""


def grown(folder: Path, what: str) -> float:
    """Peak growth of a process's own memory while it merges eight members, in members.

    Files that are mapped do not count: the system drops them when it needs memory.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed at once
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), what],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("what", ["greedy", "learned"])
def test_memory_does_not_grow_with_the_members(tmp_path: Path, what: str):
    # Of eight: the soup, a candidate or gradient, the network that judges.
    assert grown(tmp_path, what) < 3.2
