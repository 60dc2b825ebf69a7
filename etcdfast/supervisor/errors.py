"""Why a member cannot start or had to stop, as one line for the user and an exit status."""


class StartError(Exception):
    """The text goes to the log as the reason, with `fields`; the program exits with `status`."""

    def __init__(self, reason, status=1, **fields):
        super().__init__(reason)
        self.status = status
        self.fields = fields
