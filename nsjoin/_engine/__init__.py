"""The engine: starts processes and moves threads. It knows no target: a ``Way`` says where, a ``Program`` what.

The caller's process starts the joiner (``launch``), which joins and becomes the program, or clones it into the PID
namespace as a direct child of the caller. ``Call`` (forked.py) does the same with a fork of this process. The holder
of ``create`` is the joiner, waiting on a pipe. A thread goes in and comes back by itself (``trip``, ``stays``).

Who waits: launches and calls are generators that yield descriptors; ``children.wait`` polls them in a thread, aio in
its loop. Who reaps: ``children``, the joiner and what is aborted; the caller's Popen, the program. Who closes: structs
of C (nsjoin_work, nsjoin_call, nsjoin_hold) own the descriptors of a start, so that no exception loses one, and C
closes the copies in the children of other forks.

What comes from inside is never trusted: a report is four integers, a message is bounded data (``data``, ``answer``),
and no file of the target is loaded (``guard``, ``warm``).

May import: _kernel and exceptions. In this folder imports run one way: the ranks are in tests/test_build.py.
"""
