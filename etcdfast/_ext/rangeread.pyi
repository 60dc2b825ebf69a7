class RangeTooLarge(Exception): ...

class RangeRun:
    revision: int
    count: int
    more: bool
    phase: int
