DEPTH: int
SAMPLES_MAX: int
HEAD_BYTES: int
SAMPLE_BYTES: int
PAGE_BYTES: int
PID: int
ARMED: int
TAKEN: int
DONE: int

def install(fd: int) -> None: ...
def interrupt(pid: int, tid: int) -> bool: ...
