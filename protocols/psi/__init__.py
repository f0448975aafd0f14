"""Which ids several parties have in common, found without showing them: Diffie-Hellman on Curve25519, or lines of a dealer.

Bottom to top:

curve     hashes of ids as points of the curve, and points times keys
lanes     ... many at once, by kernels
worker    a process that multiplies points, where there are no such kernels
workers   what multiplies points for a party: threads or processes
sets      a party's own ids: checked, shuffled, committed to
tags      what is compared in the place of ids
terms     what the parties agree on before anything of an id is sent
flows     lists that several parties send at once, in pieces
lists     a party's own list as it is sent, and lists that are multiplied as they come
same      whether all have the same ids at the same joint rows
outcome   what an alignment gives one party
direct    lists that go to a peer and come back: two parties, or one that learns
ring      lists that pass all parties: what three and more have in common, or only how many
union     names for the ids of all parties, so that nobody learns which are common
costs     rounds, bytes and multiplications of all of these
aligning  the one function that callers use
cuckoo    a party's ids in bins, at most one to a bin
dealing   the dealer's part: a line for each bin
evaluating two parties who compare points of these lines
with_dealer the one function that callers use who have a dealer

Workers import this package: it must stay without imports of its own.
"""
