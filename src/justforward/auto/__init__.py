"""`--zo_eps auto` and `--learning_rate auto`: a short probe before training proposes what was not given.

`rules` turns measurements into proposals and knows numbers alone; `measure` measures with MeZO's own probe; `settle`
keeps what was proposed for a job, so that it is resumed with the same values.

May import `optim`, `scoring` and `training`. Start with `rules`.
"""
