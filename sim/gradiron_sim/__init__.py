"""Simulated devices: pysim and CXXRTL behind the one device interface."""
