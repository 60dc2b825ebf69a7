"""Links between members: each message is delayed by itself, so order is by chance; some are lost or come twice."""


class Network:
    """cut: directed links that carry nothing. loss, twice: shares of messages. delay_max in milliseconds."""

    def __init__(self, chance, delay_max):
        self._chance = chance
        self._delay_max = delay_max
        self.cut = set()
        self.calm()

    def calm(self):
        self.cut.clear()
        self.loss = 0.0
        self.twice = 0.0
        self.delay_max = self._delay_max

    def arrivals(self, frm, to):
        """Delays after which a message arrives: none, one or two."""
        chance = self._chance
        if (frm, to) in self.cut or chance.random() < self.loss:
            return ()
        delay = 1 + int(chance.random() * self.delay_max)
        if self.twice and chance.random() < self.twice:
            return delay, delay + chance.randint(0, 300)
        return (delay,)

    def split(self, members):
        """Two halves that do not hear each other."""
        half = set(self._chance.sample(members, self._chance.randint(1, max(1, len(members) // 2))))
        self.cut = {(a, b) for a in members for b in members if (a in half) != (b in half)}

    def cut_one_way(self, members):
        one = self._chance.choice(members)
        others = [member for member in members if member != one]
        deaf = self._chance.random() < 0.5
        for other in self._chance.sample(others, self._chance.randint(1, len(others))) if others else ():
            self.cut.add((other, one) if deaf else (one, other))
