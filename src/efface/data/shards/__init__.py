"""Shards: files that hold many pictures each. WebDataset tars and tables of Arrow, read in place and written again."""
