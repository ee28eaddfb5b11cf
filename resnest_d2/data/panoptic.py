"""COCO's panoptic annotations: segment images, and the semantic maps that detectron2 trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
import pycocotools.mask
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, one_line
from ..files import atomic_write_text, atomic_writer, check_readable, inside, unused_name, writing
from .annotations import encode_mask, is_id, load_coco, read_coco, spread

#: Segment id of unlabelled pixels.
VOID = 0
# Label of ignored pixels in semantic maps.
_IGNORED = 255
_WALL = 199
# Number of PNGs to check before a run.
_SAMPLE = 20
_STUFF = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]


def read_panoptic(annotations: Union[str, Path]) -> Dict[str, List[Dict[str, Any]]]:
    """Read the annotations and categories of a file in COCO's panoptic format, and its images, if any.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not in that format.
    """
    content = read_coco(annotations)
    for name in ("categories", "annotations"):
        if not content[name]:
            raise UserError(f"{annotations} is not COCO's panoptic format: it has no {name}")
    reason = _panoptic_fault(content["categories"], content["annotations"])
    if reason:
        raise UserError(f"{annotations} is not COCO's panoptic format: {reason}")
    return content


def _panoptic_fault(categories: List[Any], annotations: List[Any]) -> str:
    """Return what is wrong, or an empty string."""
    known, images, files = set(), set(), set()
    for category in categories:
        if not isinstance(category, dict) or not is_id(category.get("id")):
            return f"a category is {str(category)[:100]}, without a whole number as its id"
        if category.get("isthing") not in (0, 1):
            return f"category {category['id']} has no isthing of 0 or 1, which says whether it is a thing"
        known.add(category["id"])
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not is_id(annotation.get("image_id")):
            return f"annotation number {number} has no image_id that is a whole number"
        image, file = annotation["image_id"], annotation.get("file_name")
        if not isinstance(file, str) or not file:
            return f"the annotation of image {image} names no file"
        if image in images or file in files:
            return f"image {image} or its file {file!r} is listed twice"
        images.add(image)
        files.add(file)
        segments = annotation.get("segments_info")
        if not isinstance(segments, list):
            return f"the annotation of image {image} has no list segments_info"
        ids = set()
        for segment in segments:
            if not isinstance(segment, dict) or not is_id(segment.get("id")):
                return f"a segment of image {image} has no id that is a whole number"
            if not 0 < segment["id"] < 256**3:
                return f"segment {segment['id']} of image {image} has an id that no RGB image can hold"
            if segment["id"] in ids:
                return f"segment {segment['id']} of image {image} is listed twice"
            ids.add(segment["id"])
            if not is_id(segment.get("category_id")) or segment["category_id"] not in known:
                return f"segment {segment['id']} of image {image} is of no known category"
    return ""


def read_segment_ids(path: Union[str, Path]) -> np.ndarray:
    """Read each pixel's segment id, (H, W) int64, from a PNG that stores it as R + 256 G + 65536 B.

    Raises:
        UserError: the file cannot be read, or is not an RGB or RGBA PNG.
    """
    path = check_readable(path)
    try:
        with Image.open(path) as image:
            if image.format != "PNG":  # other formats, such as JPEG, change the values
                raise UserError(f"{path} is {image.format}, but images of segments must be PNG")
            if image.mode not in ("RGB", "RGBA"):
                raise UserError(f"{path} is of mode {image.mode}, but images of segments are RGB")
            rgb = np.asarray(image.convert("RGB"), dtype=np.int64)
    except UserError:
        raise
    except Exception as e:  # a broken file makes Pillow raise almost anything
        raise UserError(f"{path} is not an image or is damaged ({one_line(e, 100)})") from None
    return rgb @ np.array([1, 256, 256**2])


def read_segments(
    path: Union[str, Path],
    annotation: Mapping[str, Any],
    source: object,
    size: Optional[Tuple[int, ...]] = None,
) -> np.ndarray:
    """Read segment ids with :func:`read_segment_ids`, and check that they are exactly the annotation's.

    Args:
        annotation: an annotation from :func:`read_panoptic`.
        source: its file, for error messages.
        size: height and width of the image in pixels, if known.

    Raises:
        UserError: as in :func:`read_segment_ids`, the size differs, or only one of them has a segment.
    """
    ids = read_segment_ids(path)
    if size and ids.shape != size:
        sizes = [f"{width}x{height}" for height, width in (ids.shape, size)]
        raise UserError(
            f"{path} has {sizes[0]} pixels, but its image {annotation['image_id']} has {sizes[1]}; repair it"
        )
    listed, painted = ({s["id"] for s in annotation["segments_info"]}, {*np.unique(ids).tolist()} - {VOID})
    for alone, where in (
        (listed - painted, "is listed, but has no pixels"),
        (painted - listed, "is not listed"),
    ):
        if alone:
            raise UserError(
                f"{path} does not match {source}: in image {annotation['image_id']}, segment {min(alone)} "
                f"{where}{f', like {len(alone) - 1} more' if len(alone) > 1 else ''}"
            )
    return ids


def check_panoptic(annotations: Union[str, Path], segments: Optional[Union[str, Path]]) -> None:
    """Check a file in COCO's panoptic format, and some of its PNGs.

    Args:
        segments: folder of the PNGs; None to check none of them.

    Raises:
        UserError: as in :func:`read_panoptic` and :func:`read_segments`.
    """
    entries = read_panoptic(annotations)["annotations"]
    for index in spread(len(entries), _SAMPLE) if segments else ():
        read_segments(Path(segments, entries[index]["file_name"]), entries[index], annotations)


def write_segment_ids(ids: np.ndarray, path: Union[str, Path]) -> None:
    """Write segment ids as :func:`read_segment_ids` reads them."""
    rgb = np.stack((ids % 256, ids // 256 % 256, ids // 256**2), -1)
    with atomic_writer(path) as file:
        Image.fromarray(rgb.astype(np.uint8)).save(file, "PNG")


def write_semantic_maps(annotations: Path, segments: Path, output: Path) -> int:
    """Write the ``panoptic_stuff_*`` folder of detectron2's ``coco_2017_*_panoptic_separated``.

    Args:
        annotations: COCO's ``panoptic_*.json``.
        segments: its folder of PNGs.
        output: folder for one PNG per image: 0 for things, 1 to 53 for stuff in the order of its category
            ids, 255 for unlabelled pixels.

    Returns:
        The number of images.

    Raises:
        UserError: a file is missing or malformed, a category is not COCO's, an image of segments does not
            match its annotation, or a map cannot be written or would replace its own source.
    """
    label = {c["id"]: 0 if c["isthing"] else _STUFF.index(c["id"]) + 1 for c in COCO_CATEGORIES}
    content = read_panoptic(annotations)
    things = {c["id"]: c["isthing"] for c in COCO_CATEGORIES}
    for category in content["categories"]:
        number, thing = category["id"], category["isthing"]
        if things.get(number) != thing:
            raise UserError(
                f"{annotations} is not COCO's panoptic format: category {number} with isthing {thing} is not "
                "COCO's"
            )
    sizes = {
        image["id"]: (image["height"], image["width"])
        for image in content["images"]
        if isinstance(image, dict) and all(is_id(image.get(key)) for key in ("id", "height", "width"))
    }
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    if segments.exists() and output.samefile(segments):
        raise UserError(f"{output} is the folder of the segments themselves; name another one for maps")
    for image in tqdm(content["annotations"], desc=f"semantic maps into {output}"):
        target = inside(output, image["file_name"], annotations)
        ids = read_segments(segments / image["file_name"], image, annotations, sizes.get(image["image_id"]))
        semantic = np.full(ids.shape, _IGNORED, dtype=np.uint8)
        for segment in image["segments_info"]:
            semantic[ids == segment["id"]] = label[segment["category_id"]]
        with atomic_writer(target) as written:
            Image.fromarray(semantic).save(written, "PNG")
    return len(content["annotations"])


def panoptic_of_instances(instances: Path, annotations: Path, segments: Path) -> None:
    """Make panoptic annotations from instance annotations, to try a recipe without real ones.

    Things cover each other in the order of the file. Everything else is one segment, a wall, so results on
    such data say nothing about the segmentation of stuff.

    Args:
        instances: COCO's ``instances_*.json``.
        annotations: JSON file to write.
        segments: folder for its PNGs.
    """
    content = load_coco(instances)
    of_image: Dict[int, List[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    result, used = [], set()
    for image in content["images"]:
        height, width = image["height"], image["width"]
        ids = np.ones((height, width), dtype=np.int64)
        infos = [{"id": 1, "category_id": _WALL, "iscrowd": 0}]
        for number, annotation in enumerate(of_image[image["id"]], 2):
            rle = encode_mask(annotation["segmentation"], height, width)
            ids[pycocotools.mask.decode(rle).astype(bool)] = number
            infos.append({"id": number, **{k: annotation[k] for k in ("category_id", "iscrowd")}})
        visible = {int(i) for i in np.unique(ids)}
        name = unused_name(Path(image["file_name"]).stem, ".png", used)
        write_segment_ids(ids, segments / name)
        kept = [info for info in infos if info["id"] in visible]
        result.append({"image_id": image["id"], "file_name": name, "segments_info": kept})
    panoptic = {"images": content["images"], "annotations": result, "categories": COCO_CATEGORIES}
    atomic_write_text(annotations, json.dumps(panoptic))


def add_panoptic_of_instances(root: Path, output: Path) -> None:
    """Copy a DETECTRON2_DATASETS folder as links, and add :func:`panoptic_of_instances` to it.

    Args:
        root: folder that contains ``coco``.
        output: folder to create.
    """
    source, coco = (root / "coco").absolute(), output / "coco"
    (coco / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train2017", "val2017"):
        for link in (split, f"annotations/instances_{split}.json"):
            (coco / link).unlink(missing_ok=True)
            (coco / link).symlink_to(source / link)
        annotations, segments = coco / f"annotations/panoptic_{split}.json", coco / f"panoptic_{split}"
        panoptic_of_instances(coco / f"annotations/instances_{split}.json", annotations, segments)
        write_semantic_maps(annotations, segments, coco / f"panoptic_stuff_{split}")
