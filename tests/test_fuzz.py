"""subprocess.Popen and nsjoin.Popen agree on random cases: always the same here, others by ``tests/fuzz.py``."""

from __future__ import annotations

import pytest
from conftest import requires_program, requires_root
from fuzz import Workshop, run

CASES = 400


@pytest.fixture(scope="module", autouse=True)
def workshop():
    """Autouse, so that it is there before the guard takes stock."""
    made = Workshop()
    yield made
    made.close()


@requires_root
@requires_program("cc")
def test_subprocess_and_nsjoin_agree_on_what_a_program_gets_and_on_errors(workshop):
    counts = run(workshop, CASES, number=7)
    assert counts["programs"] > CASES / 10
    assert counts["errors"] > CASES / 10
