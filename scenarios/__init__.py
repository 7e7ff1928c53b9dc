"""Scenarios: recorded or generated driving as frozen records, and the tables that hold them.

May live here: records and their schema, one reader per recorded format, labels, partition into vehicles,
preparation for training, the shipped packs and the generator of the SUMO pack. pyarrow is imported by
`table` only, libsumo by the `sumo_*` modules only. Nothing here imports link, server or agent.
"""
