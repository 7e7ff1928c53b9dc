"""Scenarios: recorded or generated driving as frozen records, and the tables that hold them.

May live here: records and their schema, one reader per recorded format, labels, partition into vehicles,
preparation for training, the shipped packs and the generator of the SUMO pack, the closed loop with SUMO. libsumo is
imported by `sumo_run` and `closed_loop_sumo` only, in processes without pyarrow. Nothing here imports link, server or
agent.
"""
