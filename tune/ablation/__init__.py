"""Named ablations: which configurations are compared, over how many seeds, and what is read of them."""
