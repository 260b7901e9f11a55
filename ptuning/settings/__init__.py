"""What users set: dataclasses of flags, the parser, settings files, the flags of older scripts, limits of values."""
