"""sup_con: what both contrastive losses are put through, and where it alone is small."""

from collections.abc import Iterator

from suite.backends import Backend
from suite.cases import Case
from suite.embeddings import case, of_op
from suite.subjects import Embeddings


def nothing_left(subject: Embeddings, on: Backend) -> None:
    """The only other row has probability 1, whatever the temperature."""
    loss, grad = subject.run(on.argument, subject.upstream())
    assert loss.abs() < 1e-6
    assert grad.norm() < 1e-6 / subject.temperature


def cases() -> Iterator[Case]:
    yield from of_op("sup_con")
    for t in (0.5, 0.01):
        rest = {"temperature": t, "checks": (nothing_left,), "quick": True}
        yield case("sup_con", "two_rows", 2, 9, 1, **rest)
