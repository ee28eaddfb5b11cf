"""The first command that a stranger types."""

import json
import os
import subprocess

import pytest
from support import ROOT


@pytest.mark.long(15)
@pytest.mark.slow
@pytest.mark.timeout(2400)  # beside other tests, and on one processor
def test_make_quickstart_reaches_its_ap_and_draws():
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}  # all shapes
    result = subprocess.run(["make", "quickstart"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    output = ROOT / "output" / "quickstart"
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    print(f"box AP {last['bbox/AP']:.1f}, mask AP {last['segm/AP']:.1f}")
    assert last["bbox/AP"] >= 60 and last["segm/AP"] >= 55
    assert "Evaluation results for bbox" in result.stdout
    assert len(list((output / "pictures").glob("*.png"))) == 12
