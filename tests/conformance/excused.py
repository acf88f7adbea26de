"""The cases of test.test_subprocess that nsjoin.Popen need not pass, each with its reason and its Python versions.

They run nevertheless: an excuse for a case that passes, or that this interpreter does not have, is an error.
"""

from __future__ import annotations

import fnmatch
import sys
from typing import NamedTuple


class Excuse(NamedTuple):
    """``cases``: a pattern of Class.method; Python versions from ``since`` up to, not including, ``before``."""

    cases: str
    reason: str
    since: tuple[int, int] = (3, 9)
    before: tuple[int, int] = (4, 0)

    def applies(self) -> bool:
        return self.since <= sys.version_info[:2] < self.before

    def covers(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.cases)


_PREEXEC = "calls with preexec_fn, which is refused: no Python runs between the caller and the program"
_FORK_EXEC = "mocks the private _fork_exec, which is not called: the joiner is launched instead"

EXCUSED = (
    Excuse("POSIXProcessTestCase.test_close_fds_after_preexec", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_preexec", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_preexec_errpipe_does_not_double_close_pipes", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_preexec_exception", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_preexec_fork_failure", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_preexec_gc_module_failure", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_surrogates_error_message", _PREEXEC),
    Excuse("POSIXProcessTestCase.test_exception_errpipe_normal", _FORK_EXEC),
    Excuse("POSIXProcessTestCase.test_exception_errpipe_bad_data", _FORK_EXEC),
    # ProcessTestCase of 3.11 and 3.12, POSIXProcessTestCase of 3.13
    Excuse("*ProcessTestCase*.test__use_vfork", _FORK_EXEC, since=(3, 11)),
)

#: Not excused, but run without the PID namespace: inside it getppid(2) is 0, the parent being out of sight, and the
#: program of this case does kill(getppid(), SIGUSR1), which then means its own process group.
CALLER_IS_SEEN = ("ProcessTestCase*.test_communicate_eintr",)
