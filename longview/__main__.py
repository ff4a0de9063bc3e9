"""The program: `longview`, and `python -m longview`."""

import os
import signal
from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command line. Ctrl-C while it is imported ends the program at once, as nothing has begun yet."""
    signal.signal(signal.SIGINT, _interrupted)
    from longview.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _interrupted(*_: Any) -> NoReturn:
    os._exit(130)


if __name__ == "__main__":
    main()
