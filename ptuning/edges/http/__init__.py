"""The HTTP API: the published route, OpenAI's routes, health and metrics, and prefixes that are loaded while it runs.

Imported only when a server is started: FastAPI and the packages around it are an extra (``pip install ptuning[serve]``).
"""
