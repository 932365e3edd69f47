"""Scripts behind every figure that this project quotes."""
