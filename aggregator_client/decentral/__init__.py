"""Decentralised rounds: nodes exchange sealed updates through an untrusted relay, and every node computes the same aggregate.

There is no server. In a round each node puts its update on the relay, sealed to each other member, and says, signed, whose
updates it holds. Then the members agree on one block by single-decree Paxos (Lamport 2001) over the relay:

    update ──▶ holding ──▶ [ promise ──▶ proposal ──▶ vote ] × ballots ──▶ ledger

A block names the round, the block before, the updates used and the digest of the new model. It counts once a majority of all
members voted for it in one ballot, so two blocks of a round can never both count and any minority may be gone at any time. The
relay carries opaque bytes and may lose, repeat, reorder or forge them: it can stop progress, not change it. Any node can be the
relay. The chain of blocks with their signatures is the record of the training; `chain.verify` checks it from public keys.

Members are taken to follow the protocol (they run the installed package) but may stop at any time; each member sees the single
updates of the others. A project asks for it with the algorithm "decentralised"; `rounds` drives it at a node.
"""
