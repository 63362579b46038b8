"""Gradiron: train neural networks in int8 on a small accelerator, simulated or real."""
