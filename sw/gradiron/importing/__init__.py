"""Models of others: read into one meaning in real numbers, converted to integers, written back."""
