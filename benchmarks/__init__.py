"""Speed and memory of regard beside its peers, measured in one process.

cases.py     what is computed        peers/       who computes it: one function each
timing.py    interleaved medians     memory.py    peak memory
machine.py   where it ran            roofline.py  what the machine can do at best (roofline.c)
commands.py  whole commands          results.py   everything measured, and its JSON
tables.py    tables and sentences    chart.py     the picture
report.py    the terminal, docs/speed.md and the README
speed.py     the command: python -m benchmarks.speed
watching.py  another: what it costs to watch a model, python -m benchmarks.watching BOOK.txt
modules.py   another: a Transformer beside that of torch.nn, python -m benchmarks.modules
additive.py  the additive score beside its formula, python -m benchmarks.additive
"""
