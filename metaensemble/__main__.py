"""``python -m metaensemble``."""

import sys

from metaensemble.cli import main

sys.exit(main())
