"""The report: one self-contained page made only from the files of a run folder; no torch here."""
