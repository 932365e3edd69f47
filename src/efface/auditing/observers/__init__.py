"""The torch side of an audit: what a model shows of each example, as arrays."""
