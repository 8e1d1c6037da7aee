"""The suite "ravel": whether attributes of an entity can be exchanged one by one."""
