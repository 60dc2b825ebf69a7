class FaultPlan:
    """Wraps the real system calls of the WAL and makes chosen ones fail, fall short or take long."""

    spec: str
    def __init__(self, spec: str) -> None: ...
    def calls(self, operation: str) -> int: ...

OPERATIONS: tuple[str, ...]
