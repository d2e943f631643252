"""The command `lipscope`, also as `python -m lipscope`. Ctrl-C while the program is still being read ends it quietly."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from lipscope.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("stopped before anything was reached\n")
        sys.exit(4)
    run()


if __name__ == "__main__":
    main()
