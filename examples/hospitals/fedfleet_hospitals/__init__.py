"""A fedfleet task that has nothing to do with driving: hospitals that learn a diagnosis together."""
