"""The torch side of an audit: runs models and stores their outputs for each example as arrays."""
