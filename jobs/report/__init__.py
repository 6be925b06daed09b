"""One self-contained HTML page about a finished run. Reads the files of a run; knows neither engine nor scorers."""
