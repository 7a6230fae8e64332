"""The errors a user can cause. Each message says where, what it was, and what would be valid."""


class SaeError(Exception):
    """Base of every error that a user can mend; the command line prints it and exits with 2."""


class ConfigError(SaeError):
    """A run's description is wrong: unknown field, wrong type, impossible value."""


class DataError(SaeError):
    """Text, tokens or a model cannot be had or do not fit together."""


class StoreError(SaeError):
    """Files of a run are missing, damaged, or belong to other inputs."""


class FormatError(SaeError):
    """A file is not in the format, or of the version, that this code reads."""
