"""The Gradiron accelerator in Amaranth: one functional unit per file."""
