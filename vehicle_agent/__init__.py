"""The vehicle: it drives with its active model, learns when it may, and trusts only what the server signed.

``agent``, ``events``, ``actions``, ``eligibility`` and ``trusted`` are pure: values in, values out. ``journal`` is the
disk, ``trainer`` a process of its own (the only one with torch), ``runtime`` and ``swap`` hold ONNX Runtime.
``vehicle`` performs what ``agent.step`` decides; ``fleet`` drives many vehicles, ``main`` one: the same code.
"""
