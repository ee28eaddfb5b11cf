"""The classes of semantic masks, from a JSON file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from ..errors import UserError
from ..files import check_readable, read_json
from .annotations import is_id

#: detectron2's default for MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
IGNORED = 255
#: Number of labels that 8 bits can hold.
LABELS = 256


_KEYS = {"classes", "colours", "colors", "ignore_label"}
#: Other words for them.
_ALIKE = {
    **dict.fromkeys(("ignore_index", "ignored_label", "ignore_value", "ignore"), "ignore_label"),
    **dict.fromkeys(("class_names", "labels"), "classes"),
    **dict.fromkeys(("palette", "color", "colour"), "colours"),
}


class SemanticClasses(NamedTuple):
    """The classes of semantic masks.

    Attributes:
        source: the file that lists them.
        names: the name of each label from 0 on.
        colours: the (R, G, B) of each in masks that are coloured, if known.
        ignored: the label of pixels that count neither in training nor in evaluation.
    """

    source: str
    names: List[str]
    colours: Optional[List[Tuple[int, int, int]]]
    ignored: int

    @property
    def metadata(self) -> Dict[str, Any]:
        """The metadata of datasets with these classes."""
        colours = {"stuff_colors": self.colours} if self.colours else {}
        return {"stuff_classes": self.names, "ignore_label": self.ignored, **colours}


def read_classes(file: Union[str, Path, None]) -> SemanticClasses:
    """Read a JSON list of names, or an object with ``classes``, ``colours`` and ``ignore_label``.

    Raises:
        UserError: no file is named, it cannot be read or is not JSON, or one of them is not what it must be.
    """
    if file is None:
        raise UserError(
            'masks need --classes FILE: a JSON list of the labels\' names, or an object with "classes", and '
            'if need be "colours" and "ignore_label"'
        )
    content = read_json(check_readable(file, "--classes"), "--classes")
    given = content if isinstance(content, dict) else {"classes": content}
    _check_keys(file, given)
    names, ignored = given.get("classes"), given.get("ignore_label", IGNORED)
    colours = given.get("colours", given.get("colors"))
    reason = _fault(names, colours, ignored)
    if reason:
        raise UserError(f"--classes {file}: {reason}")
    return SemanticClasses(str(file), names, colours and [tuple(colour) for colour in colours], ignored)


def _check_keys(file: Union[str, Path], given: Dict[str, Any]) -> None:
    """Raise UserError for keys that are meant as one of ours; others may be anything."""
    for key in given.keys() - _KEYS:
        near = difflib.get_close_matches(key.casefold(), [*_KEYS, *_ALIKE], 1, cutoff=0.9)
        if near:
            meant = _ALIKE.get(near[0], near[0])
            raise UserError(f"--classes {file}: {key!r:.60} is not read; did you mean {meant!r}?")
    if {"colours", "colors"} <= given.keys():
        raise UserError(f"--classes {file}: has both 'colours' and 'colors'; keep one")


def _fault(names: Any, colours: Any, ignored: Any) -> str:
    """Return what is wrong, or an empty string."""
    if not isinstance(names, list) or not names:
        return 'must be a list of names, ["road", "building"], or an object whose "classes" are such a list'
    for name in names:
        if not isinstance(name, str) or not name.strip() or re.search(r"[\ud800-\udfff]", name):
            return f"the class {name!r:.60} is not a name; write text that is not empty"
    twice = _repeated(names)
    if twice is not None:
        return f"the class {names[twice]!r:.60} is listed twice; each label needs a name of its own"
    if len(names) > LABELS:
        return f"{len(names)} classes are more than the {LABELS} labels that a mask of 8 bits can hold"
    if not is_id(ignored) or not 0 <= ignored < LABELS:
        return f'"ignore_label" must be a whole number from 0 to {LABELS - 1}, got {ignored!r:.60}'
    if colours is None:
        return ""
    if not isinstance(colours, list) or len(colours) != len(names):
        count = len(colours) if isinstance(colours, list) else f"{colours!r:.60}"
        return f'"colours" must be one [R, G, B] for each of the {len(names)} classes, got {count}'
    for name, colour in zip(names, colours):
        sound = isinstance(colour, list) and len(colour) == 3 and all(map(is_id, colour))
        if not sound or not all(0 <= value < 256 for value in colour):
            return f"the colour of {name!r:.60} must be [R, G, B] from 0 to 255, got {colour!r:.60}"
    twice = _repeated(colours)
    if twice is not None:
        return f"the colour {colours[twice]} is that of two classes; each needs one of its own"
    return ""


def _repeated(entries: List[Any]) -> Optional[int]:
    """Return the index of the first entry that has occurred before."""
    return next((i for i, entry in enumerate(entries) if entry in entries[:i]), None)
