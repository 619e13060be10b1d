"""From the words of a job to checked arguments, without torch or transformers, so that mistakes are answered at once.

May import `registry` and `tasks`. Start with `arguments.parse`; `job` holds every argument of ours.
"""
