"""One-line errors for users' mistakes."""

from __future__ import annotations

import difflib
import math
import re
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Iterable, Iterator, Mapping, Optional, Tuple


class UserError(ValueError):
    """A mistake that the user can correct.

    The message is one line that names the thing, its value and the remedy. The command lines print it
    without a traceback and exit with status 2; in a library call it is an ordinary ValueError.
    """


class OptionError(UserError):
    """An option whose value cannot work.

    Args:
        option: name of the argument or configuration key, e.g. ``radix`` or ``MODEL.RESNETS.RADIX``.
        value: the value that was given.
        rule: what must hold instead, e.g. ``must be >= 0``, with other options in back quotes.
    """

    def __init__(self, option: str, value: object, rule: str) -> None:
        super().__init__(f"{option} {rule}, got {value!r}")
        self.option, self.value, self.rule = option, value, rule

    def renamed(self, names: Mapping[str, str]) -> OptionError:
        """Return the error with options renamed by ``names``, from arguments to configuration keys."""
        rule = re.sub("`(\\w+)`", lambda match: names.get(match[1], match[0]), self.rule)
        return OptionError(names.get(self.option, self.option), self.value, rule)


def check_number(
    option: str,
    value: float,
    at_least: Optional[float] = None,
    at_most: Optional[float] = None,
    above: Optional[float] = None,
) -> None:
    """Raise OptionError unless the number is finite and within the given bounds.

    Args:
        option: flag or key, for error messages, e.g. ``--epochs``.
    """
    bounds = (
        (at_least, ">=", lambda bound: value >= bound),
        (above, ">", lambda bound: value > bound),
        (at_most, "<=", lambda bound: value <= bound),
    )
    given = [(bound, sign, holds) for bound, sign, holds in bounds if bound is not None]
    finite = -math.inf < value < math.inf  # isfinite rejects integers beyond the largest float
    if not finite or not all(holds(bound) for bound, _, holds in given):
        rule = " and ".join(f"{sign} {bound:g}" for bound, sign, _ in given)
        raise OptionError(option, value, f"must be {rule}" if rule else "must be finite")


def first_difference(one: Iterable[Any], other: Iterable[Any]) -> Optional[Tuple[Any, Any]]:
    """Return the first pair of entries that differ, with None for what one of them lacks; None if none do."""
    return next((pair for pair in zip_longest(one, other) if pair[0] != pair[1]), None)


def nearest(name: object, names: Iterable[str], limit: int = 20) -> str:
    """Suggest the intended name, ignoring case: ``did you mean X?``, or else a list of the names.

    Args:
        name: the given value, of any type.
        names: the existing names.
        limit: largest number of names to list.
    """
    names = list(names)
    lower = {other.lower(): other for other in names if other != name}  # never suggest the same name
    near = [lower[n] for n in difflib.get_close_matches(str(name).lower(), lower, 2, cutoff=0.5)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    some = ", ".join(n or repr(n) for n in names[:limit])
    return f"there are {some}{', ...' if len(names) > limit else ''}" if names else "there are none"


@contextmanager
def needs(package: str, purpose: str, command: Optional[str] = None) -> Iterator[None]:
    """Context for importing a package that may be missing.

    Args:
        purpose: what needs the package, for error messages.
        command: how to install it, if not with ``pip install PACKAGE``.

    Raises:
        UserError: the package cannot be imported.
    """
    try:
        yield
    except ImportError as e:
        reason = "is not installed" if isinstance(e, ModuleNotFoundError) else f"cannot be imported ({e})"
        raise UserError(
            f"{purpose} needs {package}, which {reason}: {command or f'pip install {package}'}"
        ) from None


def one_line(text: object, limit: Optional[int] = None) -> str:
    """Return an exception's message, or other text, as one printable line.

    Args:
        limit: number of characters after which the line is cut.
    """
    whole = str(text).encode("utf-8", "backslashreplace").decode()  # escapes lone surrogates
    return " ".join(whole.split())[:limit]
