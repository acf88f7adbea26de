"""Every example runs to its end, and by that has checked itself."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from conftest import IS_ROOT, requires_root

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Iterator

PODMAN_EXEC = Path(__file__).parent.parent / "examples" / "podman_exec.py"
#: The others need a container: tests/test_containers.py.
EXAMPLES = sorted(set(Path(__file__).parent.parent.glob("examples/[!_]*.py")) - {PODMAN_EXEC})
INSIDE = Path(__file__).parent.parent / "examples" / "inside.py"
SKIPPED = 77


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    options.update(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return subprocess.run(command, **options)


def test_there_are_examples():
    assert {"inside.py", "socket_inside.py", "chained_targets.py"} <= {example.name for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs(example):
    result = run([sys.executable, "-W", "error", "-X", "dev", str(example)])
    if result.returncode == SKIPPED and result.stdout.endswith(" is not installed\n"):
        pytest.skip(result.stdout.strip())
    if result.returncode == SKIPPED and not IS_ROOT:
        # what is for root alone tells an ordinary user how to run it all the same
        hint = result.stdout.splitlines()[-1]
        assert hint.startswith("unshare --map-root-user ")
        result = run(shlex.split(hint))
    assert result.returncode == 0, result.stdout


def test_what_inside_shows_is_so():
    result = run([sys.executable, str(INSIDE)])
    statements = [line.split(None, 1) for line in result.stdout.splitlines() if line.startswith(("ok ", "NOT SO"))]
    assert [(word, text[:3]) for word, text in statements] == (
        [("ok", "(a)")] * 3 + [("ok", "(b)")] * 3 + [("ok", "(c)")] * 3
    )


def _without_numbers(text: str) -> str:
    return re.sub(r" +", " ", re.sub(r"\d+", "N", text))


@requires_root  # what an ordinary user sees differs by a sentence
def test_readme_shows_what_inside_prints():
    readme = (INSIDE.parent.parent / "README.md").read_text()
    output = run([sys.executable, str(INSIDE)]).stdout
    assert _without_numbers(output) in _without_numbers(readme)


def test_inside_fails_where_something_is_not_so(tmp_path):
    # a spawn_in that ignores fork: both programs are inside, and (a) is not so
    (tmp_path / "broken.py").write_text(
        "import runpy, sys, nsjoin\n"
        "right = nsjoin.spawn_in\n"
        "nsjoin.spawn_in = lambda *args, fork, **keywords: right(*args, **keywords)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "runpy.run_path(sys.argv[1] + '/inside.py', run_name='__main__')\n"
    )
    result = run([sys.executable, str(tmp_path / "broken.py"), str(INSIDE.parent)])
    assert result.returncode == 1
    assert "NOT SO (a) the program is outside" in result.stdout


@pytest.fixture
def readable_copy() -> Iterator[Path]:
    """What an ordinary user needs to run the examples: venv, checkout and pytest's tmp_path may all be root's alone."""
    backend = getattr(importlib.import_module("_cffi_backend"), "__file__", None)
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(Path(nsjoin.__file__).parent, folder / "nsjoin")
        shutil.copytree(INSIDE.parent, folder / "examples")
        if backend is not None:  # None: PyPy, which has it built in
            shutil.copy(backend, folder)
        folder.chmod(0o755)
        yield folder


#: Binds $1 to $2 for a program of an ordinary user, and runs that.
AS_ORDINARY_USER = 'mount --bind "$1" "$2" && shift 2 && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'


@requires_root
def test_inside_runs_as_an_ordinary_user(readable_copy):
    # the interpreter may be root's alone as well, as pyenv's is
    prefix = readable_copy / "python"
    prefix.mkdir()
    python = prefix / Path(sys.executable).resolve().relative_to(sys.base_prefix)
    bind = ["unshare", "--mount", "sh", "-c", AS_ORDINARY_USER, "sh", sys.base_prefix, str(prefix)]
    result = run(
        [*bind, str(python), str(readable_copy / "examples" / "inside.py")],
        # a shared libpython is looked for where the interpreter was installed
        env={"PYTHONPATH": str(readable_copy), "LD_LIBRARY_PATH": str(prefix / "lib"), "PATH": os.environ["PATH"]},
        cwd="/",
    )
    assert result.returncode == 0, result.stdout
    assert "An ordinary user may not enter" in result.stdout
