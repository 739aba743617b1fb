"""What is the caller's: copied or lent, watched while passes run, and given back as it was."""
