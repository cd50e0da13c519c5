"""`python -m examples.competition run`, `time` and `report`: see `--help`."""

import argparse
import sys

from . import run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.competition", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    run.add_arguments(commands.add_parser("run", help="train what is missing"))
    options = parser.parse_args(arguments)
    return int(options.command(options))


if __name__ == "__main__":
    sys.exit(main())
