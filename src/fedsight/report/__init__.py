"""The report: one self-contained page built only from the files of a run folder, without torch."""
