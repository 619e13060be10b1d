"""What a job leaves on disk, written whole: metrics, predictions, and how they came about.

May import nothing of the package but `registry`. Start with `files`.
"""
