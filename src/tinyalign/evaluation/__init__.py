"""How a model is judged: metrics, their error bars, the runner, and the files it writes."""
