"""Plain Python, no torch: errors, guarded reading, files that appear whole, private folders, names of choices."""
