"""Board tops and bitstream builds."""
