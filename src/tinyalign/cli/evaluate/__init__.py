"""`evaluate` and `score`: a task, a benchmark, a task of lmms-eval, and what is said of them."""
