"""A service over HTTP that fuses the pictures of its requests: ``ddfm-fast serve``.

limits     what a request may cost, and how a body is read within it
bodies     a multipart form or a JSON object turned into a call, its options checked by name
pictures   files or arrays turned into pictures, and a result into the bytes of a format
fusers     the fuser of each set of options, on one prior, and calls of it
engine     what answers them together: threads that decode, fuse and encode
queue      requests of one size and one set of options put together, a bounded number of them
metrics    what Prometheus reads
logs       a JSON object per line, without pictures
openapi    what ``/openapi.json`` and ``/docs`` show
app        the routes
protocol   times for a header to come and an answer to be read
run        the address, the token, signals and the server

Needs the extra ``serve``; :mod:`ddfm_fast.client` needs nothing.
"""
