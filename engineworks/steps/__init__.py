"""The steps of a build: one literal table, and one module per step with a `run(job)` that fills `job.out`.

A step reads its parameters and inputs from the job, writes its results into `job.out`, and returns nothing. `plan`
makes its key; `builds.step` stores its result.
"""
