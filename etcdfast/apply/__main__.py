"""`python -m etcdfast.apply --boot-fd N`: started by the supervisor, one per member."""

import os
import signal
import sys

from etcdfast import log
from etcdfast._ext.applyloop import EntryCorrupt, SupervisorGone
from etcdfast._ext.mvcc import StoreCorrupt
from etcdfast.apply.auth.helper import HelperError
from etcdfast.apply.cold import UnknownEntry
from etcdfast.apply.importing import ImportStopped
from etcdfast.apply.membership import MembershipError
from etcdfast.apply.process import Process, catch_sigterm
from etcdfast.apply.store import StoreError
from etcdfast.ipc import boot as booting

STORE_FOLDER = "store"  # below <data-dir>/member


def main(arguments):
    boot = booting.receive(arguments)
    process = None
    stopping = []

    def stop():
        stopping.append(True)
        if process is not None and process.loop is not None:
            process.loop.stopping = True

    wake_fd = catch_sigterm(stop)
    ready = False
    try:
        process = Process(
            os.path.join(boot.config.member_dir, STORE_FOLDER),
            os.path.join(boot.config.member_dir, "snap"),
            boot.rings,
            boot.doorbells,
            boot.status,
            boot.doorbell,
            boot.frontends,
            boot.life_fd,
            wake_fd,
            boot.config,
            boot.tokens,
        )
        process.open()
        process.load()
        if stopping:
            process.loop.stopping = True
        boot.on_reload(process.reload)
        signal.signal(signal.SIGHUP, lambda number, frame: setattr(process.loop, "aside", boot.reload))
        boot.tell_ready()
        ready = True
        process.run()
        process.close()
        return 0
    except ImportStopped:
        return 0
    except SupervisorGone:
        return booting.EXIT_INTERNAL
    except (StoreCorrupt, EntryCorrupt, UnknownEntry, MembershipError) as err:
        reason, status = f"the data is damaged or from another release: {err}", booting.EXIT_CORRUPTION
    except StoreError as err:
        reason, status = str(err), booting.EXIT_DISK
    except HelperError as err:
        reason, status = f"failed to create token provider: {err}", booting.EXIT_INTERNAL
    except Exception as err:  # the supervisor needs one line, whatever it was
        reason, status = f"apply failed: {err!r}", booting.EXIT_INTERNAL
    log.fatal(reason)
    if not ready:
        boot.tell_failed(reason)
    return status


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
