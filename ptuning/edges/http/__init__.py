"""Answers over HTTP: the published route, OpenAI's, health and metrics, and prefixes loaded while it runs.

Imported only when a server is started: FastAPI and its kind are an extra (``pip install ptuning[serve]``).
"""
