"""Print all configurations with their published figures, and the paths of their weights on this machine.

With --page, write the model zoo's page instead.
"""

from pathlib import Path
from typing import Optional

from tabulate import tabulate

from ..checkpoint import ResNeStHandler
from ..command_line import Parser, one_line_errors
from ..files import atomic_write_text, user_path
from ..published import CLASSIFIERS, MODELS
from ..published.backbones import BACKBONES
from . import available, get_config
from .page import markdown


def place(handler: ResNeStHandler, name: str) -> str:
    """Return the path of a weight on this machine, or an en dash."""
    return str(handler.find(name) or "–")


def main() -> None:
    parser = Parser(__doc__, prog="python -m resnest_d2.model_zoo")
    parser.add_argument("--page", type=user_path, metavar="FILE", help="write the zoo's Markdown page")
    with one_line_errors():
        _print(parser.parse_args().page)


def _print(page: Optional[Path]) -> None:
    if page:
        atomic_write_text(page, markdown())
        return
    handler = ResNeStHandler()
    rows = []
    for name in available():
        row = MODELS.get(name)
        weights = get_config(name).MODEL.WEIGHTS or "–"
        figures = ("backbone", "params", "box_ap", "mask_ap", "miou", "top1")
        published = [getattr(row, figure, None) for figure in figures]
        trained = row.released if name in CLASSIFIERS else name  # theirs are the backbones below
        found = place(handler, trained) if row and row.released else "–"
        rows.append((name, *published, weights, row.released if row else None, found))
    titles = (
        "configuration",
        "backbone",
        "params (M)",
        "box AP*",
        "mask AP*",
        "mIoU*",
        "top-1*",
        "start weights",
        "trained model",
        "found here",
    )
    print(tabulate(rows, titles, missingval="–", floatfmt=".2f"))
    print()
    titles = ("resnest://", "file", "crop", "top-1*", "found here")
    rows = [
        (name, record.official or record.hub, record.crop, record.top1, place(handler, name))
        for name, record in BACKBONES.items()
    ]
    print(tabulate(rows, titles, missingval="–"))
    print("\n* in percent, as published, not measured by this package. README lists the accepted files.")


if __name__ == "__main__":
    main()
