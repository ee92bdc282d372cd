"""The short part of every figure of RELIABILITY.md; ``make reliability`` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.base import Case, figures, inside

SHORT = [
    pytest.param(case, id=f"{figure.key}-{case.name}")
    for figure in figures().values()
    for case in figure.cases(False)
]


@pytest.mark.parametrize("case", SHORT)
def test_fault(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "case"
    place.mkdir()
    with inside(place):
        case.check(place)


@pytest.mark.parametrize("figure", figures().values(), ids=figures())
def test_a_figure_has_the_points_that_it_promises(figure: object) -> None:
    """Names are told apart, and the long part is no smaller than what the page says."""
    from faults.base import Figure

    assert isinstance(figure, Figure)
    for long in (False, True):
        names = [case.name for case in figure.cases(long)]
        assert len(set(names)) == len(names)
    points = sum(case.n for case in figure.cases(True))
    assert points >= figure.least
    assert sum(case.n for case in figure.cases(False)) <= points
