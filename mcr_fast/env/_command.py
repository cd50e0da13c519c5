"""`python -m mcr_fast.env`: prints what is here, and ends with 1 where that could be faster."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from mcr_fast.env._facts import Facts, collect
from mcr_fast.env._reasons import BACKENDS, Reason, reasons
from mcr_fast.env._text import text_of

SCHEMA = 1  # of --json; it grows when a key goes or changes its meaning


def report() -> str:
    """What ``python -m mcr_fast.env`` prints."""
    return text_of(collect())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report.

    Args:
        arguments: those of the command line; None for the process's own under ``-m``.

    Returns:
        The exit status: 1 where something that could be fast is slow, or where a backend that
        ``--require`` names does not serve its ops; else 0.
    """
    options = _parser().parse_args(arguments)
    required = tuple(dict.fromkeys(options.require))
    facts = collect()
    found = reasons(facts, required)
    print(as_json(facts, found, required) if options.json else text_of(facts))
    for reason in found:
        print(f"mcr_fast: {reason.reason}; {reason.fix} [{reason.id}]", file=sys.stderr)
    return 1 if found else 0


def as_json(facts: Facts, found: list[Reason], required: tuple[str, ...]) -> str:
    """What ``--json`` prints."""
    verdict = {
        "schema": SCHEMA,
        "ok": not found,
        "required": list(required),
        "reasons": [reason._asdict() for reason in found],
    }
    return json.dumps(verdict | asdict(facts), indent=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mcr_fast.env",
        description="What this machine runs mcr_fast with, and why nothing faster. Ends with 1 "
        "where something that could be fast is slow, with a line for each reason on stderr.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON; docs/api/backends.md has the keys"
    )
    parser.add_argument(
        "--require",
        action="append",
        choices=BACKENDS,
        default=[],
        help="end with 1 if this backend does not serve its ops here, and for no other reason; "
        "may be given several times",
    )
    return parser
