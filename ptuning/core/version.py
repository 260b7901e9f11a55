"""The package's version: stated here and not asked of an installation, for a checkout runs without one, too."""

__version__ = "0.1.0"
