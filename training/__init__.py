"""How dictionaries are learnt: one file per method, one loop for all of them."""
