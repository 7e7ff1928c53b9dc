"""The link between processes: MQTT 3.1.1 behind a port of five methods.

``port`` holds the events and the protocol, ``paho`` is the only file that imports paho, ``memory`` is the
deterministic broker for tests, ``embedded`` starts a real broker. This room knows topics and bytes, never
messages: nothing of rounds, updates or models. Callbacks only enqueue; nothing waits inside one.
"""
