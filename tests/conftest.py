"""What holds for every test of the project."""

import signal


def pytest_configure():
    # A shell that starts `make test &` has it ignore SIGINT, and so would every server and tool under test,
    # by inheritance: a handler of our own is not inherited, they begin with the default again.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
