"""The commands of ``python -m nsjoin``, one module each. May import every other folder; nothing imports it."""
