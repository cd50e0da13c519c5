"""The figures of docs/distributed.md about a contrastive term that stays local."""

import pytest
from programs import ROOT

from bench import local_term


@pytest.mark.parametrize("line", list(local_term.lines(4)), ids=lambda line: "-".join(line[:2]))
def test_page_has_the_figures(line):
    page = (ROOT / "docs/distributed.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(line)} |" in page


def test_local_term_of_classes_not_apart_is_another_one():
    cosine, ratio = local_term.compared("nt_xent", 4, 0.0, 0)
    assert 0.45 < cosine < 0.55
    assert 1.8 < ratio < 2.2
    cosine, ratio = local_term.compared("nt_xent", 1, 0.0, 0)
    assert cosine == pytest.approx(1)
    assert ratio == pytest.approx(1)


@pytest.mark.parametrize(("apart", "cosine"), [(0.0, 0.5), (1.0, 0.99)])
def test_more_rows_help_where_classes_are_apart(apart, cosine):
    found, _ = local_term.compared("nt_xent", 4, apart, 0, rows=512)
    assert found == pytest.approx(cosine, abs=0.02)
