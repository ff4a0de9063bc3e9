"""What a user did, as opposed to what we did: these errors are shown as one line, everything else is a bug.

Each message names the value, what was expected, and what to do next.
"""

from __future__ import annotations

from longview.versions import missing, requirement


class LongviewError(Exception):
    """The base of every error a user can cause and mend. The command line prints it and exits with code 2."""


class MediaError(LongviewError):
    """A picture or video that cannot be fetched, opened or decoded, or that exceeds a limit.

    Attributes:
        medium: Which of the conversation's media it is, from 0, where that is known.
        limit: The field of `longview.Limits` that it exceeds.
    """

    medium: int | None = None
    limit: str | None = None


class CheckpointError(LongviewError):
    """A model name or folder that cannot be opened: unknown, incomplete, of the wrong shape, or unsafe to read."""


class RequestError(LongviewError):
    """A question that cannot be asked: malformed messages, or a setting outside its range."""


class RecipeError(LongviewError):
    """A training recipe that cannot be followed: unknown keys, or values that contradict each other."""


class MissingExtraError(LongviewError):
    """A feature whose packages are not installed; names those that are missing, with the versions that were tested.

    Args:
        feature: What needs them, as the user asked for it.
        packages: The names under which pip installs them.
    """

    def __init__(self, feature: str, *packages: str) -> None:
        wanted = missing(packages) or packages
        verb = "is" if len(wanted) == 1 else "are"
        command = " ".join(map(requirement, wanted))
        super().__init__(f"{feature} needs {' and '.join(wanted)}, which {verb} not installed: pip install {command}")
