from prefect import flow


@flow(name="nightly")
def nightly(distributed: bool = False) -> None:
    """x"""
