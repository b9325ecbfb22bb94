"""Speed and memory of regard beside its peers, measured in one process.

cases.py    what is computed        peers.py    who computes it: one function each
timing.py   interleaved medians     memory.py   peak memory of one long call
machine.py  where it ran            report.py   the terminal, JSON and the README
speed.py    the command: python -m benchmarks.speed
"""
