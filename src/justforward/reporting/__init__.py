"""Result files and logs of many runs -> tables, charts and one page. Loads neither torch nor transformers by itself;
`figures` and `svg` load matplotlib.

May import `optim.log` and `results`. Start with `reading`; then `tables` and `charts`; `figures` and `page` last.
"""
