"""A member whose three kinds of process are stand-ins: `python fake_member.py [etcdfast flags]`.

The supervisor is the real one. FAKE_<PROCESS> in the environment (FAKE_APPLY, FAKE_FRONTEND0 ...) tells a
stand-in how to behave: `die:N` exit with status N once up, `fail` refuse to start, `mute` never get
ready, `fail-stop:N` exit with status N when told to stop, `stubborn` never stop (the supervisor then waits
only a little), `on-usr1:N` exit with status N at SIGUSR1, `wait-usr1` get ready at SIGUSR1, `stuck` live
without a sign of it, `first:N` exit
with status N at the first start only.
Each stand-in appends lines to the file FAKE_REPORT.
"""

import os
import select
import signal
import sys
import time


def report(line):
    with open(os.environ["FAKE_REPORT"], "a") as out:
        out.write(line + "\n")


def child():
    from etcdfast._ext.ring import ALIVE_WORD, Ring, StatusPage
    from etcdfast.ipc import boot as boot_module

    boot = boot_module.receive(sys.argv[2:])
    behaviour = os.environ.get(f"FAKE_{boot.process.upper()}", "")
    for name, fd in boot.rings.items():
        Ring(fd, boot.doorbell)
        assert boot.process in peers_of(name), name
    for fd in boot.status.values():
        assert StatusPage(fd)[0] == 0
    page = StatusPage(boot.status[boot.role]) if boot.role in boot.status else None
    stop_read, stop_write = os.pipe()

    def on_term(*_):
        report(f"term {boot.process}")
        if behaviour != "stubborn":
            os.write(stop_write, b"x")

    signal.signal(signal.SIGTERM, on_term)
    if behaviour == "wait-usr1":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    boot.on_reload(lambda config: report(f"reload {boot.process} {config.log_level} {config.quota_backend_bytes}"))
    hup_read, hup_write = os.pipe()
    signal.signal(signal.SIGHUP, lambda *_: os.write(hup_write, b"x"))
    starts = open(os.environ["FAKE_REPORT"]).read().count(f"up {boot.process} ")
    report(f"up {boot.process} {os.getpid()} {len(boot.listen)}")
    if behaviour.startswith("on-usr1:"):
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(int(behaviour[8:])))
    if behaviour.startswith("first:") and not starts:
        sys.exit(int(behaviour[6:]))
    if behaviour == "fail":
        boot.tell_failed("no luck today")
        sys.exit(boot_module.EXIT_INTERNAL)
    if behaviour == "wait-usr1":
        signal.sigwait({signal.SIGUSR1})
    if behaviour != "mute":
        boot.tell_ready()
    if behaviour.startswith("die:"):
        sys.exit(int(behaviour[4:]))
    while True:
        if page is not None and behaviour != "stuck":
            page[ALIVE_WORD] = time.monotonic_ns()
        ready, _, _ = select.select([stop_read, boot.life_fd, hup_read], [], [], 0.05)
        if boot.life_fd in ready:
            os._exit(1)
        if hup_read in ready:
            os.read(hup_read, 10)
            boot.reload()
            continue
        if stop_read in ready:
            break
    report(f"end {boot.process}")
    if behaviour.startswith("fail-stop:"):
        sys.exit(int(behaviour.partition(":")[2]))


def peers_of(ring_name):
    def full(letter, number):
        return {"c": "consensus", "a": "apply", "f": f"frontend{number}"}[letter]

    number = "".join(c for c in ring_name if c.isdecimal())
    first, second = (c for c in ring_name if c.isalpha())
    return full(first, number), full(second, number)


def supervisor():
    from etcdfast.supervisor import children, main, member

    for role in member.STOP_SECONDS:
        if os.environ.get(f"FAKE_{role.upper()}") == "stubborn":
            member.STOP_SECONDS[role] = float(os.environ.get("FAKE_STUBBORN_SECONDS", "0.2"))
    children.command_of = lambda role, boot_fd: [sys.executable, __file__, "child", "--boot-fd", str(boot_fd)]
    return main.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child()
    else:
        sys.exit(supervisor())
