class LongAnswer:
    credit: int
    revision: int
