"""Tasks and their networks: what a model takes in, what it gives out, and how good it is.

`task`, `settings`, `layout`, `prepared` and a task's own file (`motion_forecast`) need numpy and pydantic only,
so that the live agent and server may import them; `bundle` adds zstandard, `scoring` ONNX Runtime. torch is loaded
by `nets_*` and `training` alone, which live in the trainer and export processes.
"""
