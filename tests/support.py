"""Where things are, and what several test files assert."""

import os
import subprocess
from pathlib import Path
from typing import Any, Container, Dict

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.getenv("RESNEST_D2_SHARED", ROOT.parent / "shared"))


def assert_one_line_error(result: subprocess.CompletedProcess, *expected: str) -> None:
    """The command ended with status 2 and one line on stderr that holds every expected text."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr[-2000:]
    assert "Traceback" not in result.stderr + result.stdout
    for text in expected:
        assert text in lines[0], lines[0]


def of_images(content: Dict[str, Any], ids: Container[int]) -> Dict[str, Any]:
    """The part of a COCO file's content that is about some of its images."""
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
