"""A page in the browser: pairs, videos and folders fused by whoever opens it (``ddfm-fast app``).

What the page shows and what it computes are apart: ``layout`` has the controls, by Gradio, and
nothing else imports Gradio but ``run``, which starts the server. ``controls`` is what they say, as
options of the library and as arguments of the command; ``work`` fuses, by the functions that the
commands call, so that files have the same bytes; ``views`` makes what is looked at, ``sentences``
what is read, ``archives`` the ZIP files. ``gate`` lets requests in.
"""
