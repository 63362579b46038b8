"""The ground floor: architecture facts that hardware, simulators and host software all derive from.

Nothing here imports anything above it, and nothing here needs more than numpy.
"""
