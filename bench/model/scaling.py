"""`python -m bench scaling`: what a contrastive term over all ranks costs on a cluster, modelled.

Nothing here was measured on GPUs. Operations and bytes are formulas of the shapes, which the tests
of the distributed losses count; rates are constants that the command takes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tabulate import tabulate

from bench.results import significant

RANKS = (8, 64, 256, 1024)
# multiplications and additions of a pair of rows and a feature, by what they are done for
OF_SUMS, OF_GRADIENT, OF_LOCAL = 2, 4, 4
MARKS = 8 + 1  # bytes of a row's label code and of whether it is there
STATISTICS = 2 * 4  # bytes of what a row adds once its sums are known
HELD = 3  # blocks that a ring has at once: the own, the present, the next
# per loss, what each round of a ring multiplies, with the statistics on their way in the last one
ROUNDS = {"nt_xent": (OF_SUMS, 0, OF_GRADIENT), "sup_con": (OF_SUMS, OF_GRADIENT)}


@dataclass(frozen=True)
class Cluster:
    """What a GPU does in a second."""

    product: float = 500e12  # operations of products in bfloat16
    inside: float = 450e9  # bytes to GPUs of its node
    between: float = 50e9  # bytes to another node
    node: int = 8  # GPUs
    hop: float = 20e-6  # seconds that a message or a step of a collective takes at least

    def bandwidth(self, ranks: int) -> float:
        """Of the slowest link that everything passes."""
        return self.inside if ranks <= self.node else self.between


@dataclass(frozen=True)
class Term:
    """The contrastive term of one step."""

    rows: int = 2048  # of a rank, all modalities
    width: int = 512
    itemsize: int = 2
    loss: str = "nt_xent"

    def operations(self, ranks: int, of_pair: int) -> float:
        """Of a rank, its rows against those of all."""
        return float(of_pair * self.rows * self.rows * ranks * self.width)

    def block(self) -> int:
        """Bytes of a rank's rows as they travel first."""
        return self.rows * (self.width * self.itemsize + MARKS)

    def held(self, exchange: str, ranks: int) -> int:
        """Bytes of rows and what is known of them on a rank."""
        blocks = ranks if exchange == "gather" else min(ranks, HELD)
        return blocks * (self.block() + self.rows * STATISTICS)


def seconds(cluster: Cluster, term: Term, exchange: str, ranks: int) -> float:
    """Of a term: local, or over all ranks by the one exchange or the other."""
    if exchange == "local":
        return term.operations(1, OF_LOCAL) / cluster.product
    link = cluster.bandwidth(ranks)
    if exchange == "gather":
        sent = (ranks - 1) * (term.block() + term.rows * STATISTICS) / link
        work = term.operations(ranks, OF_SUMS + OF_GRADIENT) / cluster.product
        return sent + work + 2 * (ranks - 1) * cluster.hop / cluster.node
    total = 0.0
    rounds = ROUNDS[term.loss]
    for i, of_pair in enumerate(rounds):
        last = i == len(rounds) - 1
        sent = term.block() + last * term.rows * STATISTICS
        work = term.operations(1, of_pair) / cluster.product
        total += work + (ranks - 1) * max(sent / link + cluster.hop, work)
    return total


def _row(cluster: Cluster, term: Term, ranks: int) -> tuple[str, ...]:
    cells = [f"{ranks:,}", f"{ranks * term.rows:,}"]
    cells.append(significant(1e3 * seconds(cluster, term, "local", ranks), 2))
    for exchange in ("gather", "ring"):
        cells.append(significant(1e3 * seconds(cluster, term, exchange, ranks), 3))
        cells.append(significant(term.held(exchange, ranks) / 1e6, 3))
    return tuple(cells)


def table(cluster: Cluster, term: Term) -> str:
    """A line for each number of ranks."""
    header = ("GPUs", "rows of all", "local, ms", "gather, ms", "MB", "ring, ms", "MB")
    lines = [_row(cluster, term, ranks) for ranks in RANKS]
    align = ("right",) * len(header)
    return tabulate(lines, header, tablefmt="github", disable_numparse=True, colalign=align)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    term, cluster = Term(), Cluster()
    parser.add_argument("--rows", type=int, default=term.rows, help="of a rank, all modalities")
    parser.add_argument("--width", type=int, default=term.width)
    parser.add_argument("--itemsize", type=int, default=term.itemsize, help="bytes of a number")
    parser.add_argument("--loss", choices=ROUNDS, default=term.loss)
    for name, words in (
        ("product", "operations of products a second"),
        ("inside", "bytes a second of a GPU within a node"),
        ("between", "bytes a second of a GPU to other nodes"),
    ):
        parser.add_argument(f"--{name}", type=float, default=getattr(cluster, name), help=words)
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """Print the table of other constants."""
    cluster = Cluster(options.product, options.inside, options.between)
    term = Term(options.rows, options.width, options.itemsize, options.loss)
    print(table(cluster, term))
    return 0
