"""One file per figure, with its function (a table becomes a description) and its caption.

A figure of activations takes `position`: the token position to show, the last in the table if None. Every figure
raises a TableError if a column is missing or there is nothing to draw.
"""
