"""`python -m nfc_splat.compare`: many runs under one budget, and what they show.

experiments.py  what is compared: variants of the training command, and whether surfaces are measured
plan.py         the runs that follow, each a chain of commands with the file that each one leaves behind
checks.py       whether the runs that are there already are those; records.py what else is recorded of them
estimate.py     how long they should take
work.py         doing what is not done yet, one process after another or several at a time; cluster.py by Ray
measured.py     the numbers that a run left
paired.py       whether a difference is more than chance
rows.py         means and differences, row by row
published.py    what the paper printed
tables.py       these as text; results.py writes the tables and the files beside them
plot.py         lines over an axis, as SVG
"""
