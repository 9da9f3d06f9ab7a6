"""The command line, lutra: on top of all rooms, because its verbs need all of them."""
