"""What leaves Easel for those who watch it: the table of names, and the wiring that uses it."""
