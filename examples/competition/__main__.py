"""`python -m examples.competition run`, `time` and `report`: see `--help`."""

import argparse
import sys

from . import report, run, timing


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.competition", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    run.add_arguments(commands.add_parser("run", help="train what is missing"))
    timing.add_arguments(commands.add_parser("time", help="time a step of every method"))
    report.add_arguments(commands.add_parser("report", help="write tables, figures and pages"))
    options = parser.parse_args(arguments)
    return int(options.command(options))


if __name__ == "__main__":
    sys.exit(main())
