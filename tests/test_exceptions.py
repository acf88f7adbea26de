"""The errors: caught as the built-in class of their errno, complete in their words, and able to travel."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from changed import in_child

import nsjoin
from nsjoin import exceptions
from nsjoin.exceptions import (
    JoinError,
    JoinPermissionError,
    NamespaceError,
    NamespaceNotFoundError,
    NamespacePermissionError,
    NotANamespaceError,
    RestoreError,
    TargetGoneError,
)

ALL = [getattr(exceptions, name) for name in exceptions.__all__]
CLASSES = [cls for cls in ALL if issubclass(cls, NamespaceError)]


def test_every_class_of_the_module_is_public():
    defined = {
        name for name, value in vars(exceptions).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert set(exceptions.__all__) == defined
    assert all(getattr(nsjoin, name) is getattr(exceptions, name) for name in defined)


@pytest.mark.parametrize(
    ("kind", "number", "cls", "builtin"),
    [
        (NamespaceError, errno.EPERM, NamespacePermissionError, PermissionError),
        (NamespaceError, errno.EACCES, NamespacePermissionError, PermissionError),
        (NamespaceError, errno.ENOENT, NamespaceNotFoundError, FileNotFoundError),
        (NamespaceError, errno.ENOTDIR, NamespaceNotFoundError, FileNotFoundError),
        (NamespaceError, errno.ESRCH, TargetGoneError, ProcessLookupError),
        (NamespaceError, errno.EINVAL, NamespaceError, OSError),
        (JoinError, errno.EPERM, JoinPermissionError, PermissionError),
        (JoinError, errno.EACCES, JoinPermissionError, PermissionError),
        (JoinError, errno.ESRCH, TargetGoneError, ProcessLookupError),
        (JoinError, errno.EINVAL, JoinError, OSError),
        (RestoreError, errno.EPERM, RestoreError, OSError),
        (RestoreError, errno.ESRCH, RestoreError, OSError),
    ],
)
def test_the_class_follows_from_the_errno(kind, number, cls, builtin):
    made = exceptions.error(kind, number, "setns")
    assert type(made) is cls
    assert isinstance(made, builtin)
    assert isinstance(made, NamespaceError)
    assert (made.errno, made.strerror) == (number, os.strerror(number))


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (NamespaceError, (OSError,)),
        (JoinError, (NamespaceError,)),
        (JoinPermissionError, (JoinError, PermissionError)),
        (NamespacePermissionError, (NamespaceError, PermissionError)),
        (NamespaceNotFoundError, (NamespaceError, FileNotFoundError)),
        (NotANamespaceError, (NamespaceError, ValueError)),
        (TargetGoneError, (NamespaceError, ProcessLookupError)),
        (RestoreError, (NamespaceError,)),
    ],
)
def test_the_bases_are_the_documented_ones(cls, bases):
    assert cls.__bases__ == bases


def test_a_failed_way_back_is_no_failed_join():
    # whoever handles JoinError goes on in this thread, and must not after a RestoreError
    assert not issubclass(RestoreError, JoinError)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_message_has_step_type_target_errno_and_reason(cls):
    text = str(cls(errno.EPERM, "setns", nstype="net", target="process 7", reason="because"))
    assert text == "[Errno 1] setns(net) of process 7: Operation not permitted: because"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({}, "[Errno 22] open: Invalid argument"),
        ({"nstype": "pid+mnt"}, "[Errno 22] open(pid+mnt): Invalid argument"),
        ({"target": "/run/netns/a"}, "[Errno 22] open of /run/netns/a: Invalid argument"),
        ({"reason": "why"}, "[Errno 22] open: Invalid argument: why"),
    ],
)
def test_what_is_not_known_is_left_out_of_the_message(words, text):
    assert str(NamespaceError(errno.EINVAL, "open", **words)) == text


WAYS_TO_COPY = [
    *(
        lambda value, p=protocol: pickle.loads(pickle.dumps(value, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
    copy.copy,
    copy.deepcopy,
]


@pytest.mark.parametrize("way", WAYS_TO_COPY)
@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling_and_copying(cls, way):
    error = cls(errno.ESRCH, "open root", nstype="mnt", target="process 7", reason="it ended")
    error.extra = ["an attribute of the user"]
    made = way(error)
    assert type(made) is cls
    assert str(made) == str(error)
    assert (made.errno, made.strerror) == (errno.ESRCH, os.strerror(errno.ESRCH))
    assert vars(made) == vars(error)
    assert (made.step, made.nstype, made.target, made.reason) == ("open root", "mnt", "process 7", "it ended")


def test_an_error_comes_back_from_another_process():
    def ask_a_pool():
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            error = pool.submit(nsjoin.Namespace.from_path, "/").exception()
        assert type(error) is NotANamespaceError
        assert (error.step, error.target) == ("open", "/")

    in_child(ask_a_pool)  # the pool's own threads and processes end with it


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls not in CLASSES])
def test_the_errors_of_a_call_keep_text_and_status(cls):
    assert issubclass(cls, exceptions.CallError)
    made = pickle.loads(pickle.dumps(cls("it ended", -9)))
    assert type(made) is cls
    assert (str(made), made.returncode) == ("it ended", -9)
    assert cls("it went on").returncode is None
