"""A process that catches up lets others go first: nobody waits for what it does, but they may for the same cores.

Only where the system allows the way back (root, or a limit of niceness): otherwise a member would stay slow for ever.
"""

import os
import resource

NICE = 10
BEHIND_ENTRIES = 20_000  # from here on a process yields
CAUGHT_UP_ENTRIES = 2_000


class Yielding:
    """Of the calling thread. `note(entries)`: how far it is behind."""

    def __init__(self):
        self._usual = os.getpriority(os.PRIO_PROCESS, 0)
        limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
        ceiling = -20 if limit == resource.RLIM_INFINITY else 20 - limit
        self._may = self._usual < NICE and (os.geteuid() == 0 or ceiling <= self._usual)
        self.yields = False

    def note(self, entries):
        if self._may and entries >= BEHIND_ENTRIES and not self.yields:
            self._set(NICE, True)
        elif self.yields and entries <= CAUGHT_UP_ENTRIES:
            self._set(self._usual, False)

    def _set(self, nice, yields):
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
            self.yields = yields
        except OSError:
            self._may = False  # a sandbox that forbids it
