"""The protocol: ids, topics, messages, the envelope and its signatures, chunks and errors.

What lives here turns bytes into frozen, valid values and back. No I/O, no clock, no randomness: time, keys and
ids are arguments. Every other room may import this one; this one imports none of them.
"""
