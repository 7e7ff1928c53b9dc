"""Tasks and their networks: what a model takes in, what it gives out, and how good it is.

`task`, `settings`, `layout`, `prepared` and a task's own file (`motion_forecast`) need numpy and pydantic only,
so that the live agent and server may import them; `bundle` adds zstandard, `scoring` ONNX Runtime (through
`onnx_runtime`). torch is loaded by `nets_*` and `training` alone, which live in the trainer and export processes.
"""

import os

# ONNX Runtime's official build reports to its maker, from its import on, unless the environment forbids it. Set here,
# before anything of a model loads, it holds for what a task's own code imports, and for every process that we start.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
