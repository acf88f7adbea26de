"""The features that kernels lack: each row is used by its name, and docs/kernels.md has the same rows."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from nsjoin._kernel import abi

HERE = Path(__file__).resolve().parent.parent.parent
#: Only C makes these calls.
IN_C = {"close_range"}
#: Any errno means that they are not there, and Python asks for no errno.
ANY = {"PIDFD_GET_INFO"}
#: The errnos of PIDFD_THREAD, the second attempt, include those of pidfd_open.
UNDER_A_WIDER_ROW = {"pidfd_open"}


def cell(row: abi.Feature) -> str:
    if row.absent is None:
        return "any"
    names = {number: errno.errorcode[number] for number in row.absent}
    if errno.EOPNOTSUPP in names:
        names[errno.EOPNOTSUPP] = "EOPNOTSUPP"  # errorcode may call it ENOTSUP
    return ", ".join(sorted(names.values()))


def test_the_page_of_kernels_has_the_rows_of_the_table():
    page = (HERE / "docs/kernels.md").read_text()
    for row in abi.FEATURES:
        assert f"| {row.call} | {row.since} | {cell(row)} | {row.instead} |\n" in page
    section = page.partition("## What nsjoin does without\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\|", section, re.MULTILINE)) == len(abi.FEATURES) + 2


def test_each_row_is_used_by_its_name_and_no_other_name_is_used():
    source = "".join(path.read_text() for path in (HERE / "nsjoin").rglob("*.py"))
    used = set(re.findall(r'abi\.(?:lacks|absent)\("([^"]+)"', source))
    assert used | UNDER_A_WIDER_ROW == {row.call for row in abi.FEATURES} - IN_C - ANY


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_an_error_or_its_errno_says_that_a_call_is_not_there(number):
    assert abi.lacks("openat2", OSError(number, "refused"))
    assert abi.lacks("openat2", number)
    assert not abi.lacks("openat2", errno.EINVAL)
    assert abi.lacks("statx", errno.EIO)
