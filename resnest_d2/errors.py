"""What a user can do wrong, said in one line."""

from __future__ import annotations

import re
from typing import Mapping


class UserError(ValueError):
    """A mistake that the user can mend.

    The message is one line that names the thing, its value and the remedy. The command lines print it
    without a traceback and exit with status 2; in a library call it is an ordinary ValueError.
    """


class OptionError(UserError):
    """An option whose value cannot work.

    Args:
        option: name of the argument or configuration key, e.g. ``radix`` or ``MODEL.RESNETS.RADIX``.
        value: the value that was given.
        rule: what must hold instead, e.g. ``must be >= 0``. Names other options in back quotes.
    """

    def __init__(self, option: str, value: object, rule: str) -> None:
        super().__init__(f"{option} {rule}, got {value!r}")
        self.option, self.value, self.rule = option, value, rule

    def renamed(self, names: Mapping[str, str]) -> OptionError:
        """The same error with options named as in ``names``: arguments become configuration keys."""
        rule = re.sub("`(\\w+)`", lambda match: names.get(match[1], match[0]), self.rule)
        return OptionError(names.get(self.option, self.option), self.value, rule)
