"""The model of the distributed losses: its formulas at sizes that are counted by hand."""

import pytest

pytest.importorskip("tabulate")

from bench import table
from bench.machine import ROOT
from bench.model.scaling import Cluster, Term, seconds

CLUSTER = Cluster(product=1e12, inside=1e9, between=1e8, node=2, hop=0)
TERM = Term(rows=10, width=100, itemsize=2)


def test_local_rows_are_multiplied_with_each_other():
    assert seconds(CLUSTER, TERM, "local", 4) == pytest.approx(4 * 10 * 10 * 100 / 1e12)


@pytest.mark.parametrize(("ranks", "link"), [(2, 1e9), (4, 1e8)])
def test_a_gather_sends_rows_and_statistics_and_multiplies_with_all(ranks, link):
    sent = (ranks - 1) * 10 * (200 + 9 + 8) / link
    work = 6 * 10 * (10 * ranks) * 100 / 1e12
    assert seconds(CLUSTER, TERM, "gather", ranks) == pytest.approx(sent + work)


@pytest.mark.parametrize(("loss", "rounds"), [("nt_xent", 3), ("sup_con", 2)])
def test_a_slow_ring_moves_every_block_once_a_round(loss, rounds):
    term = Term(rows=10, width=100, itemsize=2, loss=loss)
    sent = 3 * (rounds * 10 * (200 + 9) + 10 * 8) / 1e8
    own_block = 6 * 10 * 10 * 100 / 1e12
    assert seconds(CLUSTER, term, "ring", 4) == pytest.approx(sent + own_block)


def test_memory_of_a_ring_does_not_grow_with_the_ranks():
    held = [TERM.held("ring", ranks) for ranks in (4, 64)]
    assert held[0] == held[1] == 3 * 10 * (200 + 9 + 8)
    assert TERM.held("gather", 64) == 64 * 10 * (200 + 9 + 8)


def test_the_page_has_the_tables_of_the_model(tmp_path):
    page = ROOT / "docs" / "scaling.md"
    copy = tmp_path / page.name
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    assert table.write_tables(copy, tmp_path) == 2
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
