"""What tasks give to be covered: one file for each kind of answer that is larger than a label."""
