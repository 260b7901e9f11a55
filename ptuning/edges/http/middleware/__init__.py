"""ASGI middleware: what every request passes before it reaches a route.

From the outside in: ``origin`` (which hosts and web pages may call the server), ``normalization`` (one spelling of path and
method), ``access`` (the API key and the size of the body). ``early_response`` and ``asgi`` serve all of them.
"""
