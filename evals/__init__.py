"""How saved dictionaries are judged: one package per suite, one result file per dictionary."""
