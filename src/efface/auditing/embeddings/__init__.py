"""Black-box audit for a data owner who has only embeddings from before and after unlearning.

``arrays`` reads the embeddings, ``agreement`` measures how well views agree, ``verdict`` draws conclusions. NumPy only:
no model, no torch.
"""
