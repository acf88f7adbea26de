"""The cases of test.test_subprocess that nsjoin.Popen need not pass, each with its reason.

``HARMFUL`` cases are not even run: they would hit the runner. The rest run; an excuse that is not needed is an error.
"""

from __future__ import annotations

#: pattern of Class.method -> reason
_PREEXEC = "uses preexec_fn, which is refused: no Python runs between the caller and the program"
_ERRPIPE = (
    "mocks os.waitpid, os.read or the private pipe by which _fork_exec tells its errors; there is a report instead"
)
_VFORK = "mocks the private subprocess._fork_exec, which is not called: the joiner is launched instead"

EXCUSED: dict[str, str] = {
    "*.test_preexec": _PREEXEC,
    "*.test_preexec_exception": _PREEXEC,
    "*.test_preexec_gc_module_failure": _PREEXEC,
    "*.test_preexec_errpipe_does_not_double_close_pipes": _PREEXEC,
    "*.test_close_fds_after_preexec": _PREEXEC,
    "*.test_surrogates_error_message": _PREEXEC,
    "*.test_exception_errpipe_*": _ERRPIPE,
    "ProcessTestCase*.test__use_vfork": _VFORK,
}

HARMFUL: dict[str, str] = {
    "*.test_communicate_eintr": "the program signals os.getppid(), which is 0 inside a PID namespace: kill(2) then "
    "means its own process group, so the signal ends the runner",
}
