"""The pages of docs/ and README: every snippet runs, what is shown is what comes, and links lead somewhere.

The blocks of a page are run in their order; python blocks share their names. 4711 stands for the pid of a target. A
```text block behind a python block is what that prints, with ... for what differs. ``<!-- shown: REASON -->`` before a
block: it is not run. ``<!-- needs: PROGRAM -->``: without it (or without being root) the page's test is skipped.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from conftest import IS_ROOT, Running, requires_program

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent.parent
PAGES = sorted(HERE.glob("docs/**/*.md"))
BLOCK = re.compile(r"(?:<!-- shown: (?P<shown>[^>]+) -->\n)?^```(?P<kind>[a-z]+)\n(?P<text>.*?)^```$", re.M | re.S)
END = "--- end of block ---"
#: Blocks of README that are not run, by what is in them
README_SHOWN = {
    "/run/netns/blue": "needs that name; docs/howto/netns.md runs the like of it",
    '["make", "test"]': "needs a target with a Makefile",
    "start_server(handle": "half a program; docs/howto/sockets.md has a whole one",
}
README_IMPORTS = "import socket, subprocess, nsjoin\n"


class Block(NamedTuple):
    kind: str
    text: str
    shown: str | None


def blocks(page: Path) -> list[Block]:
    return [Block(found["kind"], found["text"], found["shown"]) for found in BLOCK.finditer(page.read_text())]


def same(expected: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS)


def run(command: list[str], pid: int) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    command = [re.sub(r"\b4711\b", str(pid), word) for word in command]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def run_python(all_blocks: list[Block], pid: int, imports: str = "", warnings: str = "error") -> None:
    program, expected = imports, []
    for block, after in zip(all_blocks, [*all_blocks[1:], Block("", "", None)]):
        if block.kind == "python" and block.shown is None:
            program += f"{block.text}\nprint({END!r})\n"
            expected.append(after.text if after.kind == "text" else None)
    if expected:
        printed = run([sys.executable, "-W", warnings, "-c", program], pid).split(f"{END}\n")
        assert len(printed) == len(expected) + 1
        for wanted, got in zip(expected, printed):
            assert wanted is None or same(wanted, got), f"{wanted}\nis not\n{got}"


def run_console(block: Block, pid: int) -> None:
    _, *commands = re.split(r"^\$ ", block.text, flags=re.M)
    assert commands
    for command in commands:
        line, _, wanted = command.partition("\n")
        got = run(["sh", "-c", line], pid)
        assert same(wanted, got), f"{line}\n{wanted}\nis not\n{got}"


def skip_what_is_missing(page: Path) -> None:
    for need in re.findall(r"<!-- needs: (\S+) -->", page.read_text()):
        if need == "root" and not IS_ROOT:
            pytest.skip("enters or makes namespaces that only root may")
        if need != "root" and shutil.which(need) is None:
            pytest.skip(f"{need} is not installed")


#: A container with what docker leaves it of root's capabilities: call_in does not go to one that has them all.
CONTAINER = """exec setpriv --bounding-set=-all,\
+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_raw,+sys_chroot,+mknod,+setfcap \
sh -c 'echo bounded; exec sleep infinity'"""


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    running = Running(("mnt", "uts", "ipc", "net", "pid", "cgroup"), CONTAINER)
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == "bounded\n"
    yield running
    running.end()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE / "docs")))
def test_the_snippets_of_a_page_run_and_print_what_it_says(page: Path, target: Running) -> None:
    skip_what_is_missing(page)
    run_python(blocks(page), target.pid)
    for block in blocks(page):
        if block.kind == "console" and block.shown is None:
            run_console(block, target.pid)


@pytest.mark.skipif(not IS_ROOT, reason="one of them enters, which only root may")
@requires_program("ps")
def test_the_snippets_of_readme_run(target: Running) -> None:
    python = [block for block in blocks(HERE / "README.md") if block.kind == "python"]
    for words in README_SHOWN:
        assert any(words in block.text for block in python), f"README has no block any more with {words}"
    wanted = [block for block in python if not any(words in block.text for words in README_SHOWN)]
    assert wanted
    for block in wanted:
        run_python([block], target.pid, README_IMPORTS, "ignore::ResourceWarning")


def test_the_reference_has_every_public_name() -> None:
    text = (HERE / "docs/reference.md").read_text()
    named = re.findall(r"^\.\. auto\w+:: nsjoin\.(\w+)$", text, re.M)
    assert sorted(named) == sorted(nsjoin.__all__)


def test_links_between_pages_lead_to_files() -> None:
    for page in [*PAGES, HERE / "README.md"]:
        text = re.sub(r"^```\w.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page}: {link}"


#: `test_x` alone is in the file that the text names next, else in tests/test_attacks.py; here: it exists anywhere.
NAMED_TEST = re.compile(r"`(test_\w+\*?)`|(?:`|pytest )((?:tests/)?(?:\w+/)?test_\w+\.py)\b")


@pytest.mark.parametrize("page", [HERE / "SECURITY.md", *PAGES], ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    files = sorted(HERE.glob("tests/**/test_*.py"))
    paths = {str(file.relative_to(HERE)) for file in files} | {file.name for file in files}
    names = {name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.M)}
    named = NAMED_TEST.findall(page.read_text())
    for name, path in named:
        assert not path or path in paths, path
        assert not name or name in names or any(one.startswith(name[:-1]) for one in names if name[-1] == "*"), name
    assert len(named) > (20 if page.name == "SECURITY.md" else -1)
