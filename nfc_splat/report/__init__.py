"""`python -m nfc_splat.report RUN...`: one HTML file about run folders that opens offline and asks for nothing else.

folder.py      a run folder read with care: what is there, and why the rest is not
curves.py      metrics.jsonl as lines over steps
views.py       which views are shown, runs of the same photographs side by side
pictures.py    pictures as data URIs, small enough
summary.py     the numbers, their protocol, and which of them can be compared
surface.py     what `eval mesh` left in RUN/mesh-eval
variants.py    runs that differ only in the seed, taken together where there are many runs
settings.py    in which settings runs differ, and what repeats them
page.py        all of it as a page: `write_report`
"""
