"""Networks: backbones and text towers, ours and those of other libraries, always untrained."""
