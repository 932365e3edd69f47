"""The verbs on run folders: each reads run folders and writes one, and none of them prints."""
