"""What a user calls: enter, spawn_in, run_in, call_in, create, unshare. May import all storeys below.

- ``enter`` starts nothing: it moves the calling thread, and its stay (``_engine.stays``) is the way back.
- ``spawn_in`` starts the program by the joiner, which is a child of this process, as the program is. The verb waits
  until the program has exec'd or failed; on failure the engine kills and reaps both. Once it runs, the caller waits.
- ``run_in`` waits as well: the program is killed and reaped before an exception of the wait leaves it.
- ``call_in`` forks a child that makes the call; the verb waits for its result, kills it on failure, and reaps it.
- ``create`` starts a holder, which ends once the namespace is open. The init of a PID namespace stays; closing its
  ``PidNamespace`` kills and reaps it, unless ``keep=True``.

A verb closes what it opens of a target before it returns. The caller closes what a verb returns.
"""
