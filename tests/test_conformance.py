"""What judges the run of the interpreter's own test.test_subprocess, and a short one.

The whole: ``nox -s conformance``, or ``python tests/conformance/run.py``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import requires_root

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "conformance", "run.py")


@pytest.fixture(scope="module")
def runner():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("conformance_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


@pytest.mark.parametrize(
    ("name", "plain", "inside", "column"),
    [
        ("ProcessTestCase.test_pipesize_default", "passed", "passed", "passed"),
        ("ProcessTestCase.test_pipesize_default", "skipped", "skipped", "skipped"),
        ("POSIXProcessTestCase.test_preexec", "passed", "TypeError", "excused"),
        ("POSIXProcessTestCase.test_preexec", "passed", "skipped", "skipped"),
        ("ProcessTestCase.test_broken_machine", "FileNotFoundError", "FileNotFoundError", "skipped"),
    ],
)
def test_what_ends_as_it_does_for_subprocess_is_right(runner, name, plain, inside, column) -> None:
    counts, wrong = runner.judge({name: plain}, {name: inside}, everything=False)
    assert not wrong
    assert counts == {**dict.fromkeys(runner.COUNTS, 0), column: 1}


@pytest.mark.parametrize(
    ("plain", "inside"), [("passed", "ValueError"), ("passed", "skipped"), ("skipped", "ValueError")]
)
def test_what_ends_otherwise_has_failed(runner, plain, inside) -> None:
    name = "ProcessTestCase.test_poll"
    counts, wrong = runner.judge({name: plain}, {name: inside}, everything=False)
    assert counts["failed"] == 1
    assert wrong == [f"{name}: {plain} with subprocess.Popen, here:\n{inside}"]


def test_a_case_that_was_not_run_inside_has_failed(runner) -> None:
    counts, _ = runner.judge({"ProcessTestCase.test_poll": "passed"}, {}, everything=False)
    assert counts["failed"] == 1


def test_an_excuse_that_is_not_needed_is_an_error(runner) -> None:
    name = "POSIXProcessTestCase.test_preexec"
    _, wrong = runner.judge({name: "passed"}, {name: "passed"}, everything=False)
    assert len(wrong) == 1
    assert "but it passes" in wrong[0]


def test_an_excuse_for_a_case_that_does_not_exist_is_an_error(runner) -> None:
    _, wrong = runner.judge({}, {}, everything=True)
    assert wrong == [
        f"{excuse.cases}: excused, but there is no such case" for excuse in runner.EXCUSED if excuse.applies()
    ]


@requires_root
@pytest.mark.skipif(
    importlib.util.find_spec("test.test_subprocess") is None, reason="this interpreter comes without its own tests"
)
def test_the_context_manager_cases_pass_inside() -> None:
    command = [sys.executable, PROGRAM, "-k", "ContextManagerTests.*"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| 6 passed | 0 failed | 0 excused | 0 skipped |" in result.stdout
