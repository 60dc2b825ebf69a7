"""What can be wrong with a command, and the exit codes of etcd's tools."""

# reference/etcd-behaviour.md, exit codes of pkg/cobrautl
ERROR = 1
BAD_CONNECTION = 2
INVALID_INPUT = 3
BAD_FEATURE = 4
INTERRUPTED = 5
BAD_ARGUMENTS = 128


class UtlError(Exception):
    """A command cannot go on; the text is one line for the user."""

    def __init__(self, reason, code=ERROR):
        super().__init__(reason)
        self.code = code


class UsageError(UtlError):
    """The command line itself is wrong in a way that its usage text explains."""
