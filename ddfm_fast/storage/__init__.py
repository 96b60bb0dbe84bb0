"""Files behind URLs of fsspec, such as ``s3://``, ``gs://``, ``az://``, ``https://`` and ``zip://``.

urls      what is a URL, its parts, and its text where a Path has swallowed a slash
trouble   what failed: whether it may be tried again, and a sentence with the fix
objects   one object or a listing: look, read, fetch, put, remove
cache     whole files that are kept between processes, such as checkpoints
staging   local files that stand for objects, so that all that reads files reads objects

Needs the extra ``storage``. Objects are written whole or not at all.
"""
