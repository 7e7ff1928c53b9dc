"""Configurations of brokers, their ACLs and the AsyncAPI description of the topics: data, no code.

``protocol/topics.py`` is the truth; tests hold these files against it.
"""
