"""The steps of decoders: one module per kind. `steps.job` runs it where a step's document says `decoder`."""
