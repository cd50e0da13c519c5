"""Speed and memory of every op against what people run today: `python -m bench --help`."""
