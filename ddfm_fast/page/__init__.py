"""A page in the browser: pairs, videos and folders fused by whoever opens it (``ddfm-fast app``).

What the page shows is separate from what it computes: ``layout`` has the controls, by Gradio, which
only it and ``run``, which starts the server, import. ``controls`` turns them into options of the
library and arguments of the command; ``work`` fuses, by the functions that the commands call, so
that files have the same bytes; ``views`` makes pictures, ``sentences`` texts, and ``archives`` ZIP
files. ``gate`` admits requests.
"""
