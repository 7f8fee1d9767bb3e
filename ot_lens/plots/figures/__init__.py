"""One file per figure, with its function (a table becomes a description) and its caption."""
