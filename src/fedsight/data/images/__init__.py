"""Image files as arrays: decoding, pixels, DICOM."""
