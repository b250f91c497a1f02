"""The policy language and its engine. Pure: no I/O, no clock, no globals."""
