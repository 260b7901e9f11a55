"""The package's version: stated here and not read from an installation, because a checkout runs without one, too."""

__version__ = "0.1.0"
