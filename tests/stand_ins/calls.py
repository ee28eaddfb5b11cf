"""Write down what the stand-ins of trackers are asked to do, and fail where a test wants it."""

import json
import os


def called(service: str, what: str, **values) -> None:
    """Append a line to $TRACKER_CALLS; raise ConnectionError for the calls that $TRACKER_FAILS names."""
    if what in os.environ.get("TRACKER_FAILS", "").split(","):
        raise ConnectionError("there is no route\nto the host")
    with open(os.environ["TRACKER_CALLS"], "a") as file:
        file.write(json.dumps({"service": service, "what": what, **values}) + "\n")
