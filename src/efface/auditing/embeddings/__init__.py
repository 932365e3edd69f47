"""The audit of a data owner who holds nothing but embeddings from before and after: arrays in, evidence out.

``arrays`` reads them, ``agreement`` measures, ``judging`` says what follows, ``page`` writes it down. numpy only; no
model, no torch.
"""
