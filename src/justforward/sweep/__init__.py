"""The search of `justforward sweep`: its options, its study, and the runs that it makes.

May import everything but `commands` and `reporting`. Start with `study`.
"""
