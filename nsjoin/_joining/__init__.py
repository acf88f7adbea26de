"""What to join, in which order, as whom, and why the kernel refused.

``start`` turns a request into a ``Way`` and gives it to the engine: ``select`` (which namespaces), ``order`` (in which
order), ``identity`` (which ids), ``trust`` (whether a forked child would be exposed). ``failures`` and ``reasons`` turn
a failed step into the exception that the caller sees.

Who reads, who judges: ``ownership``, ``select`` and ``identity`` ask the kernel; ``order``, ``way_to`` and the table
``AGAIN`` get facts as arguments and decide without a system call, so that each rule is a row of a test.

The target may change while it is examined. What it may control once it is in another user namespace (its ids, its
root) is read first, and then it is checked that it has not left: here, or by the joiner after the joins.

What may be tried again is a row of ``AGAIN``: the step, the errnos, and what the next attempt does differently. Any
other failure is explained; reasons are looked up only then.

Each attempt owns the descriptors that it has opened, and closes them before the next. Nothing here starts, waits for or
ends a process. It may import ``_kernel``, ``_engine`` and ``_target``.
"""
