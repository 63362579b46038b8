"""Models of others, read into one meaning in real numbers and converted to the machine's integers.

Experimental: groundwork without a public interface. Names in here change without notice.
"""
