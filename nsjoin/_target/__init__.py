"""Targets: the process or namespaces that a caller names, and everything read from them before the joins.

``check_target`` sorts what the caller passes without a system call; ``OpenTarget`` opens it: one pinned ``Process``, or
``Namespace`` objects, never both. From then on the pid means the same process: every query goes through its pidfd (or
its open /proc directory before Linux 5.3), or is checked against it, and raises TargetGoneError once it has ended. A
public ``Target`` only holds a ``Process``; all of nsjoin inside uses the latter.

Everything here is read *before* joining, with the caller's credentials, as data: the target's /etc/passwd through its
root and never through its name service, its environment, ids, cgroups and capabilities from the pinned /proc. Nothing
inside the target is trusted afterwards.

Each descriptor has one owner: ``Process``, ``Namespace`` and ``OpenTarget`` close what they have opened, what a caller
has opened stays open. Two modules start something: ``id_maps`` runs newuidmap(1) and reaps it; ``netns_etc`` makes a
mount namespace in a thread that ends with it.

Files, lowest first: proc_directory, process, pins, namespace, pids, target; id_maps, cgroups, accounts, likeness,
netns_etc; seen, survey. They import _kernel, _engine (records, ``stays``) and exceptions; never _joining or above.
"""
