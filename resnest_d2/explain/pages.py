"""Pictures of attention and of class activation maps, and a page of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Sequence, Set

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ..errors import UserError
from ..evaluation.labels import label
from ..evaluation.report import charts, gallery
from ..evaluation.report.page import write_page
from ..files import atomic_writer, check_writable, unused_name
from .attention import EVEN, SATURATED, Block, dead_channels
from .cam import Explanation
from .images import Sample

PAGE = "index.html"
_MOST_CLASSES = 20  # in a picture of a block
_MOST_SPLITS = 6  # with a line each
_TEMPLATES = Path(__file__).parent
#: Opacity of the colour where a map is 1.
_OPACITY = 0.75


def prepare_folder(folder: Path, overwrite: bool) -> None:
    """Check that pictures and a page can be written to a folder.

    Args:
        overwrite: also to one that is not empty, whose files of the same names are then replaced.

    Raises:
        UserError: the folder is not writable, or holds files.
    """
    check_writable(folder / PAGE, "name a folder in --output")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name a new folder, or replace files with --overwrite")


def write_attention(
    blocks: Sequence[Block], used: Sequence[Sample], names: Sequence[str], title: str, folder: Path
) -> None:
    """Write a picture of each block, named like the block, and a page with all of them.

    Args:
        blocks, used: from :func:`measure_attention`.
        names: of the classes.
        title: of the page, such as the name of the configuration.

    Raises:
        UserError: a file cannot be written.
    """
    rows = []
    for block in blocks:
        picture = charts.raster(lambda figure, block=block: _draw_block(figure, block, names), (10, 3.3))
        with atomic_writer(folder / f"{block.name}.png") as file:
            file.write(picture)
        rows.append({**_row(block), "picture": gallery.data_url(picture, "png")})
    write_page(
        folder / PAGE,
        _TEMPLATES / "attention.html.j2",
        title=title,
        images=len(used),
        labelled=sum(sample.label is not None for sample in used),
        classes=len({sample.label for sample in used} - {None}),
        chance=blocks[0].by_chance,
        rows=rows,
        dead=dead_channels(blocks),
        even=EVEN,
        saturated=SATURATED,
        charts=[
            {"title": "Entropy", "svg": _entropies(blocks), "note": _ENTROPY},
            {"title": "Variance explained by the class", "svg": _explained(blocks), "note": _EXPLAINED},
            {"title": "Dead channels", "svg": _dead(blocks), "note": _DEAD},
        ],
    )


_ENTROPY = (
    "1: all splits have the same attention; 0: one has all of it. Line: mean of the channels; band: their "
    "5th to 95th percentile."
)
_EXPLAINED = (
    "Eta squared, summed over splits and channels; dashed: what is expected if the class made no difference."
)
_DEAD = (
    f"Channels whose attention is within {EVEN:g} of equal splits (even), or within {SATURATED:g} of 0 or 1 "
    "(saturated), in all images."
)


def _row(block: Block) -> Dict[str, Any]:
    return {
        "name": block.name,
        "radix": block.radix,
        "channels": len(block.entropy),
        "splits": [float(mean) for mean in block.by_channel.mean(1)],
        "entropy": float(block.entropy.mean()),
        "explained": block.explained,
        "even": int(block.even.sum()),
        "saturated": int(block.saturated.sum()),
    }


def _entropies(blocks: Sequence[Block]) -> str:
    def draw(axes: Axes) -> None:
        low, high = np.array([np.percentile(block.entropy, (5, 95)) for block in blocks]).T
        axes.fill_between(range(len(blocks)), low, high, alpha=0.2, linewidth=0)
        axes.plot([block.entropy.mean() for block in blocks], marker="o", markersize=3)
        _by_block(axes, blocks, "entropy", 1)

    return charts.chart(draw, "entropy by block")


def _explained(blocks: Sequence[Block]) -> str:
    def draw(axes: Axes) -> None:
        axes.plot([block.explained for block in blocks], marker="o", markersize=3)
        axes.axhline(blocks[0].by_chance, color="#444", linestyle="--", linewidth=1)
        _by_block(axes, blocks, "eta squared", 1)

    return charts.chart(draw, "variance of attention explained by the class, by block")


def _dead(blocks: Sequence[Block]) -> str:
    def draw(axes: Axes) -> None:
        even = [100 * block.even.mean() for block in blocks]
        saturated = [100 * block.saturated.mean() for block in blocks]
        axes.bar(range(len(blocks)), even, label="even")
        axes.bar(range(len(blocks)), saturated, bottom=even, label="saturated")
        _by_block(axes, blocks, "% of the channels", 100)
        axes.legend(loc="upper right")

    return charts.chart(draw, "dead channels by block")


def _by_block(axes: Axes, blocks: Sequence[Block], unit: str, most: float) -> None:
    """Name the first block of each stage on the x axis."""
    stages = [block.name.partition(".")[0] for block in blocks]
    first = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    axes.set_xticks(first, [stages[i] for i in first])
    axes.set(ylabel=unit, xlabel="block", xlim=(-0.6, len(blocks) - 0.4), ylim=(0, 1.02 * most))


def _draw_block(figure: Figure, block: Block, names: Sequence[str]) -> None:
    """Draw the attention of all channels, sorted, and on the right how it differs from class to class."""
    classes = sorted(block.by_class, key=lambda c: -int((block.classes == c).sum()))[:_MOST_CLASSES]
    if len(classes) < 2:
        classes = []
    order = np.argsort(block.by_channel[0])
    left, *right = np.atleast_1d(figure.subplots(1, 2 if classes else 1))
    figure.suptitle(block.name, size=11)
    least, most = block.attention.min(0)[0][order], block.attention.max(0)[0][order]
    left.fill_between(range(len(order)), least, most, alpha=0.2, linewidth=0, label="split 1, all images")
    for i, means in enumerate(block.by_channel[:_MOST_SPLITS], 1):
        left.plot(means[order], label=f"split {i}, mean", linewidth=1.2)
    left.axhline(1 / max(block.radix, 2), color="#888", linestyle=":", linewidth=1)
    left.set(xlabel="channel, sorted", ylabel="attention", ylim=(0, 1), xlim=(0, max(len(order) - 1, 1)))
    left.legend(loc="upper left", fontsize=7)
    for axes in right:
        values = np.array([block.by_class[c][0][order] for c in classes]) - block.by_channel[0][order]
        limit = max(float(np.abs(values).max()), 0.01)
        scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        shown = axes.imshow(values, **scale, aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        axes.set_yticks(range(len(classes)), [charts.in_legend(names[c]) for c in classes], size=7)
        axes.set(xlabel="channel, sorted")
        figure.colorbar(shown, ax=axes, label="split 1, class minus all")


def write_maps(explained: Sequence[Explanation], title: str, folder: Path) -> List[Path]:
    """Write a picture for each map, named like its image, and a page with all of them.

    Args:
        title: of the page, such as the name of the configuration.

    Returns:
        The pictures.

    Raises:
        UserError: a file cannot be written.
    """
    if any(explanation.file.resolve().parent == folder.resolve() for explanation in explained):
        raise UserError(f"{folder} is the folder of the images, which pictures would replace; name another")
    used: Set[str] = set()
    paths, entries = [], []
    for explanation in explained:
        problem = explanation.problem and label(explanation.problem, 300)
        entry: Dict[str, Any] = {"name": label(explanation.file.name, 100), "problem": problem}
        if explanation.heat is not None:
            paths.append(folder / unused_name(explanation.file.stem, ".png", used))
            picture = _draw_map(explanation)
            with atomic_writer(paths[-1]) as file:
                picture.save(file, "PNG")
            plain = Image.fromarray(explanation.pixels).resize(picture.size, Image.Resampling.BICUBIC)
            entry.update(
                what=label(explanation.what, 100),
                layer=explanation.layer,
                image=gallery.picture(np.asarray(plain)),
                map=gallery.picture(np.asarray(picture)),
            )
        entries.append(entry)
    write_page(folder / PAGE, _TEMPLATES / "cam.html.j2", title=title, entries=entries)
    return paths


def _draw_map(explanation: Explanation) -> Image.Image:
    """Colour a grey image by its map, and frame the detection."""
    height, width = explanation.pixels.shape[:2]
    size = gallery.fitting(height, width)
    # Grey, so that the only colours are those of the map.
    grey = Image.fromarray(explanation.pixels).convert("L").resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(grey, np.float32)[..., None]
    heat = np.asarray(Image.fromarray(explanation.heat).resize(size, Image.Resampling.BILINEAR))[..., None]
    colours = 255 * matplotlib.colormaps["inferno"](heat[..., 0])[..., :3]
    mixed = (1 - _OPACITY * heat) * pixels + _OPACITY * heat * colours
    picture = Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
    if explanation.box is not None:
        scale = size[0] / width
        ImageDraw.Draw(picture).rectangle(
            [scale * side for side in explanation.box], outline="#00d0ff", width=3
        )
    return picture
