"""The update on the wire: select, quantize, entropy-code, wrap; and back, checked before it is believed.

What may live here: pure functions over numpy arrays and bytes. No I/O, no clock, no randomness, no network,
no knowledge of rounds, vehicles or keys. The byte format is specified in docs/codec-format.md.
"""
