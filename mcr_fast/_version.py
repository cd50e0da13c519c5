"""The one source of the version number; it imports nothing, so that a build can read it."""

__version__ = "0.1.0"
