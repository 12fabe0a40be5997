"""Which parts of ByG carry it: the rows of the paper's table 4, trained and scored alike."""
