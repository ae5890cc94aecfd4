"""The benchmark: every cell of a grid fitted and measured once, and the published tables made of them.

spec       what is to be measured, from a TOML file
cells      the grid's cells, and what makes two of them the same
measure    one cell: fit, model folder, inspector, evaluation
clock      inference times of all methods by one clock
store      what is kept in the results' folder
run        all of it, from wherever it was left
paper      the published values
tables     rows, columns, means and differences
figures    pictures and bars
page       results.csv, tables.md, tables.html
"""
