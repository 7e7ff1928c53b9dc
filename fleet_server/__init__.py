"""The fleet server: takes updates in, runs rounds, publishes models.

Pure files decide (rounds, selection, fold, merge, strategies, downlink, gate, settlement, admission); the store keeps
what is true; ingest, coordinator and publisher do what was decided; main holds the clock and the process. torch and
onnx are loaded only by ``export``, a process of its own. Nothing here imports the vehicle's rooms.
"""
