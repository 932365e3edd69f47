"""Reference implementation of cosines and neighbor overlap: loops in float64."""

from tests.reference.probes import cosine


def neighbors(query, index, own, k):
    """The k rows most similar to a query; ``own`` is the query's row."""
    ranked = sorted((-cosine(query, row), i) for i, row in enumerate(index) if i != own)
    return {i for _, i in ranked[:k]}


def overlap(queries, index_a, index_b, k, queries_b=None):
    """Mean share of common neighbors of the same queries in two indexes."""
    total = 0.0
    for own, query in enumerate(queries):
        other = query if queries_b is None else queries_b[own]
        total += len(neighbors(query, index_a, own, k) & neighbors(other, index_b, own, k)) / k
    return total / len(queries)
