"""What an operator can see of a member while it runs: /metrics, /debug/vars, /debug/profile.

The supervisor makes the answers (`service`), out of the shared blocks of figures (`_ext/meters`), the status pages,
the rings' control pages and /proc; frontends pass requests on (`channel`). Nothing here runs in a process that serves
calls, but for a thread that waits.
"""
