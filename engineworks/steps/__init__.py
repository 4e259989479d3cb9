"""The steps of a build: one literal table, and one module per step with a `run(job)` that fills `job.out`.

A step reads its parameters and inputs from the job, writes files into `job.out`, and returns nothing: what it found
out stands in the files. Its key is made in `plan`, its place in the store in `execute`.
"""
