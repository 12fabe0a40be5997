"""The loss by a vision-language model (NP-Edit, section 4.2): what it is asked, how it sees, what it answers."""
