"""Main of a frontend process: `python -m etcdfast.frontend --boot-fd N`, started by the supervisor."""

import os
import sys

from etcdfast import log
from etcdfast.frontend import process
from etcdfast.ipc import boot as boot_module


def main():
    boot = boot_module.receive(sys.argv[1:])
    try:
        status = process.serve(boot)
    except Exception as err:
        log.fatal("frontend stopped on an internal error", frontend=boot.index, error=f"{type(err).__name__}: {err}")
        status = boot_module.EXIT_INTERNAL
    # Helper threads answer at most one HTTP/1.1 request more; nothing here is worth waiting for.
    os._exit(status)


if __name__ == "__main__":
    main()
