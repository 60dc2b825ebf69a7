"""`python -m etcdfast.consensus --boot-fd N`: started by the supervisor, one per member."""

import json
import os
import sys

from etcdfast import log
from etcdfast.consensus.corruptcheck import DataInconsistency
from etcdfast.consensus.process import MemberRemoved, Process, ProcessFault, SupervisorGone
from etcdfast.consensus.storage import DiskFailed, StorageError
from etcdfast.consensus.transfer import Restart
from etcdfast.ipc import boot as booting

# Set by the fault tests alone: JSON of settings of formats.wal, such as {"faults": "fdatasync:3:EIO"}.
TEST_SETTINGS = "ETCDFAST_TEST_WAL"


def main(arguments):
    boot = booting.receive(arguments)
    process = None
    try:
        process = Process(boot, json.loads(os.environ.get(TEST_SETTINGS, "{}")))
        process.run()
        return 0
    except SupervisorGone:
        return booting.EXIT_INTERNAL
    except Restart:
        return booting.EXIT_RESTART
    except MemberRemoved:
        return booting.EXIT_REMOVED
    except StorageError as err:
        reason, status = str(err), booting.EXIT_CORRUPTION if err.corrupt else 1
    except DiskFailed as err:
        reason, status = str(err), booting.EXIT_DISK
    except DataInconsistency as err:
        reason, status = str(err), booting.EXIT_CORRUPTION
    except ProcessFault as err:
        reason, status = str(err), booting.EXIT_INTERNAL
    except OSError as err:
        where = f" {err.filename}" if err.filename else ""
        reason, status = f"consensus cannot go on:{where} {err.strerror or err}", booting.EXIT_DISK
    except Exception as err:  # the supervisor needs one line, whatever it was
        reason, status = f"consensus failed: {err!r}", booting.EXIT_INTERNAL
    log.fatal(reason)
    if process is None or not process.told_ready:
        boot.tell_failed(reason)
    return status


if __name__ == "__main__":
    # No interpreter shutdown: every thread that matters has ended, or must not be waited for after a fault.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
