"""The key space as the services see it (etcdfast/apply/services), on the state of the apply process."""

from etcdfast._ext.keyorder import KeyOrder


class Space:
    """`engine`: etcdfast.apply.engine.Engine, for the ids of headers; `mvcc`: the state behind it."""

    def __init__(self, engine, mvcc):
        self._engine = engine
        self._mvcc = mvcc
        order = KeyOrder(mvcc)
        self.first_created = order.first_created
        self.last_created = order.last_created

    @property
    def cluster_id(self):
        return self._engine.cluster_id

    @property
    def member_id(self):
        return self._engine.member_id

    @property
    def raft_term(self):
        return self._engine.raft_term

    @property
    def leader(self):
        """Id of the member that leads, 0 none."""
        return self._engine.leader

    @property
    def current_revision(self):
        return self._mvcc.current

    def get(self, key, revision=0):
        # Never 0: between two slices of a revoke the index holds more than the current revision.
        return self._mvcc.get(key, revision or self._mvcc.current)
