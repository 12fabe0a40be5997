"""How an error reads where another text quotes it."""

from cluster.errors import first_cause, one_line


def test_one_line_is_the_same_in_every_process_and_never_empty():
    assert one_line(OSError("cannot identify image file <_io.BytesIO object at 0x7f3a9c>")) == (
        "cannot identify image file <_io.BytesIO object>"
    )
    assert one_line(ValueError("a\n  b\tc")) == "a b c" and one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 300)) == "x" * 300 and one_line(ValueError("x" * 301)) == "x" * 297 + "..."


def test_the_first_cause_is_the_one_that_nothing_else_caused():
    first, last = OSError("disk"), ValueError("row")
    last.__cause__ = RuntimeError("table")
    last.__cause__.__cause__ = first
    assert first_cause(last) is first_cause(first) is first
