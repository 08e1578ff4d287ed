"""`python -m nfc_splat.compare`: many runs under one budget, and one table.

experiments.py  what is compared: variants of the training command, and whether surfaces are measured
plan.py         the runs that follow, each a chain of commands with the file that each one leaves behind
work.py         doing what is not done yet, one process after another
results.py      the numbers that the runs left, as a table and as files
plot.py         lines over an axis, as SVG
"""
