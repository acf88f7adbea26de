"""What the kernel offers: its numbers, its calls, its types of namespace, this process's /proc and this thread.

This storey knows no target, starts no process and moves no thread by itself. Every other storey may import it; it
imports ``nsjoin.exceptions`` and nothing else of the package, and inside it imports run one way:

    abi, nstypes, capabilities  <-  calls  <-  procfs  <-  thread

``calls`` alone imports the compiled module. One typed function stands for each system call; where the kernel refuses,
it raises OSError. Only the engine uses ``calls.lib`` and ``calls.ffi`` directly, for the structures that it shares
with C. What an older kernel, or a seccomp filter, lacks is a row of ``abi.FEATURES``.

A function that returns a descriptor hands it over to its caller, who closes it; all descriptors are close-on-exec.
This storey keeps two for itself: one of /proc (``procfs.keep``), and in C a pidfd of each thread that has asked for
its own namespaces, which C closes when the thread ends. Other than these it owns nothing.
"""
