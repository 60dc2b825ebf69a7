"""Everything between members that is HTTP: one thread beside the main loop of the consensus process.

    peers' HTTP servers <--- dial streams, POST, probe ---+            +--- main thread: raft, WAL, hot streams
                                                          | peer thread|      (consensus/process.py, _ext/peerlink)
    peers' HTTP clients ---- streams, POST, snapshots --->+            +---

The thread speaks HTTP heads, and bodies that are rare. A stream (GET /raft/stream/...) whose head is done is taken off
asyncio and its socket given to the main thread, which alone reads and writes it from then on: no Python per message.

How the two talk (the interpreter lock is the main thread's more than ours, so both ways are short):

- main -> peers: methods of `PeerThread`; each puts one callback into the thread's event loop and returns at once. What
  may pile up (POSTs) is counted and refused at a limit.
- peers -> main: an `Inbox`: a deque of tuples and an eventfd that the main loop watches. `inbox.take()` gives:

      ("stream_out", kind, peer, taken, headers)  the peer dialled us, its head is answered -> PeerLink.attach_out
      ("stream_in", kind, peer, taken, leftover)  we dialled the peer -> PeerLink.attach_in, then link_next; when the
                                                   stream breaks, tell stream_lost(peer, kind) to have it dialled again
      ("message", body, reply)            POST /raft; body is one raftpb.Message that parses (peerwire.PeerMessage)
      ("snapshot", message, path, reply)  POST /raft/snapshot; message is the MsgSnap, path the durable database file
      ("lease_keep_alive", body, reply), ("lease_time_to_live", body, reply)
      ("hash_kv", body, reply)            body is the JSON request
      ("promote", member id, reply)
      ("removed",)                        a peer says that this member is not of the cluster any more
      ("refused", peer)                   a dial was refused: nobody listens there
      ("unreachable", peer)               a POST to the peer failed or was dropped
      ("probe", peer, seconds)            round trip of /raft/probing; None: it failed
      ("call", function, arguments)       the end of something asked for: call it
      ("failed", text)                    the thread died; the member must stop

  `reply(status, body=b"", content_type=None)` may be called once, from any thread, and sends the HTTP answer; without
  one the asker is told of a time-out. A failure's body is text, which gets the newline that Go's http.Error gives.

Answers to what main asks for (`post`, `send_snapshot`, `ask`) come as "call" too: `done` runs on the main thread.

Source: reference/formats.md section 4.
"""

from etcdfast.consensus.peers.mailbox import Inbox, Reply
from etcdfast.consensus.peers.thread import PeerThread
from etcdfast.consensus.peers.tls import PeerTls
from etcdfast.consensus.peers.view import PeerSettings, View

__all__ = ["Inbox", "PeerSettings", "PeerThread", "PeerTls", "Reply", "View"]
