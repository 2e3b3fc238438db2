"""Runs a Python module's command and writes the peak of its memory to $PEAK_FILE.

Called by run.py, as `peak.py -m MODULE ARGUMENT...`.
"""

import json
import os
import resource
import subprocess
import sys

subprocess.run([sys.executable, *sys.argv[1:]], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = {
    "peak_mb": used.ru_maxrss * 1024 / 1e6,
    "processor_seconds": used.ru_utime + used.ru_stime,
}
with open(os.environ["PEAK_FILE"], "w", encoding="utf-8") as handle:
    json.dump(peak, handle)
