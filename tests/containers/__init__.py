"""Real containers: started from Debian's packages, joined by nsjoin, compared with the engine's own exec.

``python -m tests.containers`` prints the table; ``tests/test_containers.py`` and ``benchmarks/exec.py`` use the same.
"""
