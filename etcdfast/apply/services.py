"""Runtime of the calls that wait inside apply: Lock and Election, and what apply proposes by itself.

A handler is a generator. It yields what it waits for and goes on with the result:

    Proposal(method, request)    -> (error id, response bytes), once the entry is applied or refused
    ReadIndex(method)            -> (error id, text), once the state is new enough for a linearizable read
    Wait(keys, prefix, credit)   -> [Change, ...] of those keys or below that prefix; [] when only credit came
    Pause(delay_ns)              -> None
    Job(helper, kind, request)   -> (error id, answer bytes) of a helper process (etcdfast/apply/auth/helper)

and returns (error id, response bytes, text), or raises Refused. When whoever asked is gone (cancelled, or
answered because a proposal took too long), a handler in Wait gets Gone; one whose proposal is under way
goes on with its outcome, because only then it knows what it has to clean up. The rest of such a handler
runs for nobody, until it returns.

What the key space must show (`space`; etcdfast/apply/space does):

    cluster_id, member_id, raft_term, leader, current_revision     as in etcdfast/apply/engine
    get(key, revision=0) -> (create, mod, version, record) or None
            the key at a revision (0: now); record is the stored mvccpb.KeyValue; None: absent, deleted, compacted
    first_created(prefix) -> record or None
            the live key below a prefix with the lowest create revision; of equal ones the lowest key
    last_created(prefix, create_max) -> key or None
            the live key with the highest create revision <= create_max; of equal ones the lowest key

What the loop must give (`loop`):

    propose(method, request, token[, user, auth_revision]) -> bool
            PROPOSE on `ac` with frontend IPC_SELF and slot = token; a LeaseGrant goes with IPC_FLAG_NEW_ID;
            False: no room now. `request` is at most `request_bytes_max` bytes. It goes in the name of the caller
    read(method, token, deadline_ns) -> bool
            READ on `ac` with frontend IPC_SELF and slot = token; False: no room now
    reply(who, status, payload, text)
            the whole answer of a call: REPLY, or BEGIN/PART as for any long answer; `text` (str) replaces the
            table's when status is not 0 and it is not empty
    may_read(user, auth_revision, key, range_end) -> error id
            whether the caller may read that now
    message(who, payload)
            one message of a stream: MESSAGE, or BEGIN/PART above IPC_REPLY_BYTES_MAX, in order with the others
    end(who, status, text)
            END of a stream that had a message; a stream without one is ended by reply

and what it must call, after the turn's batch is written and in this order (`who` is anything hashable that is
equal for all records of a call; the times are CLOCK_MONOTONIC ns):

    changed(key, main, deleted)      each change of the turn in revision order, while `waiting` is not 0
    answered(token, status, payload) each answer to a proposal or ReadIndex; payload: response, or text
    lead(leads)                      who leads has changed
    call(method, payload, who[, user, auth_revision]), cancel(who) -> bool, credit(who, bytes) -> bool
                                     False: not a call of the services (any more); it may be a long answer by now
    tick(now_ns)                     at the latest at `next_due_ns` (0: nothing is due)
    turn() -> bool                   True: more to do at once. While `blocked` is true a proposal waits for room
                                     in `ac`: do not sleep longer than until there is some (ring_await_room)

Handlers run in turn() only, so what they read is always the state at the end of a turn. It is this member's
state: what must be linearizable is read behind a ReadIndex or a proposal of the handler's own.
"""

import heapq
from collections import deque, namedtuple

from etcdfast.api import errors

PROPOSAL_TIMEOUT_NS = 7 * 10**9  # etcd's request timeout with the default election timeout
LOST_NS = 60 * 10**9  # an answer that late does not come any more
CALLS_MAX = 10_000
HELD_BYTES_MAX = 64 << 20  # of requests whose calls wait
STEPS_MAX = 256  # handlers run in one turn
STREAM_UNSENT_MAX = 64 << 10  # bytes of one stream that its client has not taken; one message may exceed it
BULK_UNSENT_MAX = 224 << 10  # of a stream that is a transfer: what the frontend holds, less one message
UNSENT_MAX = 256 << 20  # of all streams
TOKEN_MAX = (1 << 32) - 1

Proposal = namedtuple("Proposal", "method request must", defaults=(False,))
ReadIndex = namedtuple("ReadIndex", "method")
Wait = namedtuple("Wait", "keys prefix credit", defaults=((), None, False))
Pause = namedtuple("Pause", "delay_ns")
Job = namedtuple("Job", "helper kind request")
Change = namedtuple("Change", "key main deleted")

_READY, _WAITING, _PAUSED, _UNSENT, _PROPOSED, _WORKING, _DONE = range(7)


class Gone(Exception):
    """Nobody waits for this call any more."""


class Refused(Exception):
    """The call fails with this text. etcd's services hand on errors without their codes: as UNKNOWN."""

    def __init__(self, text, symbol="UNKNOWN"):
        super().__init__(text)
        self.status = errors.ID[symbol]


class _Topic:
    """What happened to one key, or below one prefix, and the calls that wait for it."""

    __slots__ = ("calls", "changes")

    def __init__(self):
        self.calls = {}  # a dict keeps them in order
        self.changes = []


class Call:
    """One call under way. Handlers use `gone`, `check`, `may_send`, `send`."""

    __slots__ = (
        "_services", "auth_revision", "changes", "gone", "handler", "held_bytes", "number", "overdue", "proposal",
        "raised", "result", "since", "starved", "state", "streaming", "token", "topics", "unsent_bytes", "unsent_max",
        "user", "who",
    )  # fmt: skip

    def __init__(self, services, who, held_bytes, user=b"", auth_revision=0):
        self._services = services
        self.who = who  # None: a task of apply's own
        self.user = user  # in whose name it proposes; empty: nobody's
        self.auth_revision = auth_revision  # at which that was established
        self.handler = None
        self.held_bytes = held_bytes
        self.state = _READY
        self.gone = False
        self.raised = self.result = None  # what the handler goes on with
        self.number = 0  # of what it waits for: tells an old due time from the one that counts
        self.proposal = None
        self.token = 0
        self.overdue = False
        self.topics = ()
        self.changes = []
        self.since = 0
        self.starved = False
        self.streaming = False
        self.unsent_bytes = 0
        self.unsent_max = STREAM_UNSENT_MAX

    def check(self):
        """Errors: Gone."""
        if self.gone:
            raise Gone

    @property
    def may_send(self):
        """Whether a message may be sent now; if not, Wait with credit=True."""
        return self.unsent_bytes < self.unsent_max and self._services.unsent_bytes < UNSENT_MAX

    def send(self, message):
        """One message of a stream; nothing is sent to a client that is gone."""
        if not self.gone:
            self._services.send(self, message)


class Services:
    """See the top of the file. `handlers`: {RPC id: generator function of (services, call, payload)}.

    waiting: how many keys and prefixes are waited for; blocked: a proposal waits for room;
    next_due_ns: when tick must be called, 0 never; now_ns: of the last tick.
    """

    def __init__(self, space, loop, handlers, request_bytes_max, timeout_ns=PROPOSAL_TIMEOUT_NS, calls_max=CALLS_MAX):
        self.space = space
        self._loop = loop
        self._handlers = handlers
        self._request_bytes_max = request_bytes_max
        self._timeout_ns = timeout_ns
        self._calls_max = calls_max
        self._calls = {}  # who -> Call
        self._ghosts = set()  # calls that run on for nobody
        self._held_bytes = 0
        self.unsent_bytes = 0
        self._starved = {}  # calls that wait for the room of all streams only, oldest first
        self._ready = deque()
        self._unsent = deque()  # calls whose proposal waits for room
        self._proposed = {}  # token -> Call
        self._last_token = 0
        self._keys = {}  # key -> _Topic
        self._prefixes = {}  # prefix -> _Topic
        self._prefix_lengths = {}  # length -> how many prefixes have it
        self._dirty = []
        self._due = []  # heap of (due_ns, order, call, call.number)
        self._order = 0
        self.now_ns = 0
        self.waiting = 0
        self.on_lead = None  # called with whether this member leads, when that may have changed

    @property
    def blocked(self):
        return bool(self._unsent)

    @property
    def next_due_ns(self):
        due = self._due
        while due and due[0][2].number != due[0][3]:
            heapq.heappop(due)
        return due[0][0] if due else 0

    @property
    def count(self):
        """Calls under way, those that only clean up included."""
        return len(self._calls) + len(self._ghosts)

    # ---- from the loop ----

    def call(self, method, payload, who, user=b"", auth_revision=0):
        """Start a handler. Errors: KeyError for a method that has none."""
        handler = self._handlers[method]
        if self.count >= self._calls_max or self._held_bytes + len(payload) > HELD_BYTES_MAX:
            self._loop.reply(who, errors.ID["TOO_MANY_REQUESTS"], b"", "")
            return
        call = Call(self, who, len(payload), user, auth_revision)
        call.handler = handler(self, call, payload)
        self._held_bytes += call.held_bytes
        self._calls[who] = call
        self._ready.append(call)

    def start(self, task):
        """Run a generator of apply's own beside the calls; it has no limit to wait for."""
        call = Call(self, None, 0)
        call.handler = task
        self._ready.append(call)

    def cancel(self, who):
        """Whoever asked is gone. False when that call is not known (any more)."""
        call = self._calls.get(who)
        if call is None:
            return False
        self._leave(call)
        reads = type(call.proposal) is ReadIndex
        if call.state == _WORKING:
            call.proposal.helper.withdraw(call)
        if call.state in (_WAITING, _WORKING) or call.state == _UNSENT and (reads or not call.proposal.must):
            self._resume(call, raised=Gone)
        return True

    def credit(self, who, size):
        """The client of a stream took `size` bytes. False when that call is not known (any more)."""
        call = self._calls.get(who)
        if call is None:
            return False
        taken = min(size, call.unsent_bytes)
        call.unsent_bytes -= taken
        self.unsent_bytes -= taken
        if call.starved and call.unsent_bytes < call.unsent_max:
            self._starved[call] = True
        self._feed()
        return True

    def changed(self, key, main, deleted):
        """One change of the key space, in revision order."""
        topic = self._keys.get(key)
        if topic is not None:
            self._note(topic, key, main, deleted)
        if not self._prefixes:
            return
        at = key.find(b"/") + 1
        while at:
            if at in self._prefix_lengths:
                topic = self._prefixes.get(key[:at])
                if topic is not None:
                    self._note(topic, key, main, deleted)
            at = key.find(b"/", at) + 1

    def answered(self, token, status, payload):
        """The entry of a proposal is applied, or it was refused."""
        call = self._proposed.pop(token, None)
        if call is not None:  # else it was given up
            self._resume(call, (status, payload))

    def lead(self, leads):
        if self.on_lead is not None:
            self.on_lead(leads)

    def tick(self, now_ns):
        """Let time pass."""
        self.now_ns = now_ns
        due = self._due
        while due and due[0][0] <= now_ns:
            _, _, call, number = heapq.heappop(due)
            if call.number != number:
                continue
            if call.state == _PAUSED:
                self._resume(call)
            elif call.state == _UNSENT:
                self._resume(call, (errors.ID["TIMEOUT"], b""))
            elif call.state == _PROPOSED:
                self._late(call)

    def turn(self):
        """Bring proposals into the log that found no room, run handlers; whether more can be done at once."""
        self._wake()
        while self._unsent:
            call = self._unsent[0]
            if call.state == _UNSENT and not self._offer(call):
                break
            self._unsent.popleft()
        for _ in range(min(STEPS_MAX, len(self._ready))):
            self._run(self._ready.popleft())
        return bool(self._ready)

    # ---- for handlers ----

    def need_read(self, call, key, range_end):
        """Whether the caller may read that, as of now. Errors: Refused."""
        status = self._loop.may_read(call.user, call.auth_revision, key, range_end)
        if status:
            raise Refused(errors.ERRORS[status].text)

    def header(self, header, revision=0):
        """Fill a ResponseHeader; revision 0 is the current one."""
        space = self.space
        header.cluster_id = space.cluster_id
        header.member_id = space.member_id
        header.raft_term = space.raft_term
        header.revision = revision or space.current_revision

    def send(self, call, message):
        call.streaming = True
        call.unsent_bytes += len(message)
        self.unsent_bytes += len(message)
        self._loop.message(call.who, message)

    # ---- running ----

    def _run(self, call):
        """One step of a handler: up to the next thing it has to wait for."""
        call.state = _DONE
        self._unsubscribe(call)
        raised, result = call.raised, call.result
        call.raised = call.result = call.proposal = None
        while True:
            try:
                command = call.handler.throw(raised) if raised is not None else call.handler.send(result)
            except StopIteration as end:
                return self._finish(call, end.value)
            except Gone:
                return self._finish(call, None)
            except Refused as refused:
                return self._finish(call, (refused.status, b"", str(refused)))
            raised = result = None
            call.number += 1
            kind = type(command)
            if kind is Proposal:
                if call.gone and not command.must:
                    raised = Gone
                    continue
                if len(command.request) > self._request_bytes_max:
                    result = errors.ID["REQUEST_TOO_LARGE"], b""
                    continue
                self._ask(call, command)
            elif kind is ReadIndex:
                if call.gone:
                    raised = Gone
                    continue
                self._ask(call, command)
            elif kind is Wait:
                if call.gone:
                    raised = Gone
                    continue
                self._subscribe(call, command)
            elif kind is Job:
                if call.gone:
                    raised = Gone
                    continue
                if not command.helper.submit(call, command.kind, command.request, self._worked):
                    result = errors.ID["TOO_MANY_REQUESTS"], b""
                    continue
                call.proposal = command
                call.state = _WORKING
            else:
                call.state = _PAUSED
                self._set_due(call, command.delay_ns)
            return None

    def _resume(self, call, result=None, raised=None):
        if call.state in (_READY, _DONE):
            return
        call.number += 1
        call.state = _READY
        call.result = result
        call.raised = raised
        self._ready.append(call)

    def _finish(self, call, result):
        call.number += 1
        call.handler = None
        if call.who is None:
            return
        was_gone = call.gone
        if not was_gone:
            self._leave(call)
        self._ghosts.discard(call)
        self._held_bytes -= call.held_bytes
        if was_gone:
            return
        status, payload, text = result
        if call.streaming:
            self._loop.end(call.who, status, text)
        else:
            self._loop.reply(call.who, status, payload, text)

    def _leave(self, call):
        """From here on nobody waits for it."""
        call.gone = True
        del self._calls[call.who]
        self._ghosts.add(call)
        self.unsent_bytes -= call.unsent_bytes
        call.unsent_bytes = 0
        self._feed()

    def _feed(self):
        """Let streams go on that had to wait for others."""
        while self._starved and self.unsent_bytes < UNSENT_MAX:
            call = next(iter(self._starved))
            del self._starved[call]
            self._resume(call, [])

    def _set_due(self, call, delay_ns):
        self._order += 1
        heapq.heappush(self._due, (self.now_ns + delay_ns, self._order, call, call.number))

    # ---- proposals and ReadIndexes ----

    def _ask(self, call, command):
        call.proposal = command
        call.state = _UNSENT
        self._set_due(call, self._timeout_ns)
        if self._unsent or not self._offer(call):
            self._unsent.append(call)

    def _offer(self, call):
        token = self._last_token
        while True:
            token = token % TOKEN_MAX + 1
            if token not in self._proposed:
                break
        wanted = call.proposal
        if type(wanted) is ReadIndex:
            sent = self._loop.read(wanted.method, token, self.now_ns + self._timeout_ns)
        else:
            identity = (call.user, call.auth_revision) if call.user else ()
            sent = self._loop.propose(wanted.method, wanted.request, token, *identity)
        if not sent:
            return False
        self._last_token = token
        self._proposed[token] = call
        call.token = token
        call.state = _PROPOSED
        return True

    def _late(self, call):
        """A proposal or a ReadIndex under way has had its time."""
        if call.who is None or type(call.proposal) is ReadIndex:
            del self._proposed[call.token]
            self._resume(call, (errors.ID["TIMEOUT"], b""))
        elif call.overdue:
            del self._proposed[call.token]
            call.handler.close()
            call.state = _DONE
            self._finish(call, None)
        else:
            # It may yet be applied: the handler stays, to undo what then must not stand.
            call.overdue = True
            self._set_due(call, LOST_NS)
            if not call.gone:
                self._leave(call)
                # As etcd, whose proposals do not even begin without a leader.
                text = errors.ERRORS[errors.ID["TIMEOUT" if self.space.leader else "DEADLINE"]].text
                (self._loop.end if call.streaming else self._reply_error)(call.who, errors.ID["UNKNOWN"], text)

    def _reply_error(self, who, status, text):
        self._loop.reply(who, status, b"", text)

    def _worked(self, call, status, answer):
        """A helper has done what it was given."""
        if call.state == _WORKING:
            self._resume(call, (status, answer))

    # ---- changes ----

    def _note(self, topic, key, main, deleted):
        if not topic.changes:
            self._dirty.append(topic)
        topic.changes.append(Change(key, main, deleted))

    def _wake(self):
        """Hand what happened in the last turn to the calls that wait for it: once per call, however much it was."""
        dirty, self._dirty = self._dirty, []
        for topic in dirty:
            changes, topic.changes = topic.changes, []
            for call in topic.calls:
                # A call that began to wait in this very turn has seen the turn's end.
                news = changes if changes[0].main > call.since else [c for c in changes if c.main > call.since]
                if not news:
                    continue
                call.changes = call.changes + news if call.changes else news
                self._resume(call)
                call.result = call.changes

    def _subscribe(self, call, wait):
        call.state = _WAITING
        call.since = self.space.current_revision
        call.changes = []
        topics = []
        for key in wait.keys:
            topic = self._keys.get(key)
            if topic is None:
                topic = self._keys[key] = _Topic()
                self.waiting += 1
            topics.append((self._keys, key, topic))
        prefix = wait.prefix
        if prefix is not None:
            topic = self._prefixes.get(prefix)
            if topic is None:
                topic = self._prefixes[prefix] = _Topic()
                self._prefix_lengths[len(prefix)] = self._prefix_lengths.get(len(prefix), 0) + 1
                self.waiting += 1
            topics.append((self._prefixes, prefix, topic))
        for _, _, topic in topics:
            topic.calls[call] = True
        call.topics = topics
        if wait.credit:
            call.starved = True
            if call.unsent_bytes < call.unsent_max:
                self._starved[call] = True
                self._feed()

    def _unsubscribe(self, call):
        for table, name, topic in call.topics:
            topic.calls.pop(call, None)
            if not topic.calls and table.get(name) is topic:
                del table[name]
                self.waiting -= 1
                if table is self._prefixes:
                    self._prefix_lengths[len(name)] -= 1
                    if not self._prefix_lengths[len(name)]:
                        del self._prefix_lengths[len(name)]
        call.topics = ()
        call.changes = []
        if call.starved:
            call.starved = False
            self._starved.pop(call, None)


def propose(method, request, must=False):
    """For handlers: the response bytes of a proposal. Errors: Refused with the text of its error."""
    status, payload = yield Proposal(method, request, must)
    if status:
        raise Refused(text_of(status, payload))
    return payload


def read_index(method):
    """For handlers: what they read next is linearizable. Errors: Refused with the text of the error."""
    status, text = yield ReadIndex(method)
    if status:
        raise Refused(text_of(status, text))


def text_of(status, payload=b""):
    return payload.decode("utf-8", "replace") if payload else errors.ERRORS[status].text
