"""Where and how a pipeline runs: stages, fingerprints, artifacts, leases, plans and runs. Knows nothing of
images.
"""
