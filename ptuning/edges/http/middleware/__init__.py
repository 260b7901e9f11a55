"""ASGI middleware: what a request passes before it reaches a route."""
