"""How fast it is, compared with what, at what quality, how near to the limit, on which machine.

``python -m bench`` here, ``ddfm-fast bench`` where the package is installed: the same program
(this folder is the package ``ddfm_fast.bench``). Everything printed is a ratio within one run to a
transcription of the authors' path (``reference``), or a share of what the machine reached by
measurement in that run. ``pytest bench/`` runs the sections under pytest-benchmark.
"""
