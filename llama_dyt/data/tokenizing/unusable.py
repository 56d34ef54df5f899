"""Why a record cannot be learned from; told with its file and row where it is read."""


class Unusable(Exception):
    """The message says why, and goes on from the record's place: "has no field 'prompt'"."""
