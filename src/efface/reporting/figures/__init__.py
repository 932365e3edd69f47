"""The figures of the pages, drawn as inline SVG."""
