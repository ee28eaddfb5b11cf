"""tools/train_net.py where the packages of this folder are installed."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "tools/train_net.py"), run_name="__main__")
